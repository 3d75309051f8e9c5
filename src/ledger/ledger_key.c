/*
 * llm-ledger key: a new API key, and what the file of accounts
 * (src/ngx_http_llm_accounts_file.c) says of it.
 *
 * A key is "sk-" and 256 random bits in base64url: nobody finds one by trying,
 * so a plain SHA-256 keeps it as well as a slow hash would.
 */

#include <stdio.h>
#include <string.h>

#include <openssl/evp.h>
#include <openssl/rand.h>

#include "ledger.h"


#define KEY_BYTES   32
#define KEY_PREFIX  "sk-"
#define KEY_LEN     (sizeof(KEY_PREFIX) - 1 + (KEY_BYTES * 8 + 5) / 6)


static int key_usage(FILE *out, int status);
static int key_name(const char *name);
static void key_text(const uint8_t *bytes, char *text);


int
ledger_key(int argc, char **argv)
{
    int            rc;
    char           text[KEY_LEN + 1];
    uint8_t        bytes[KEY_BYTES], digest[EVP_MAX_MD_SIZE];
    unsigned       i, len;

    if (argc == 2 && strcmp(argv[1], "--help") == 0) {
        return key_usage(stdout, 0);
    }

    if (argc != 2) {
        return key_usage(stderr, LEDGER_EXIT_USAGE);
    }

    if (key_name(argv[1]) != 0) {
        ledger_error("invalid name \"%s\", it must be 1 to %d of A-Z a-z 0-9 "
                     ". _ @ + : / - and not begin with a -", argv[1],
                     LEDGER_NAME - 1);
        return LEDGER_EXIT_USAGE;
    }

    rc = 1;

    if (RAND_bytes(bytes, sizeof(bytes)) != 1) {
        ledger_error("no random bytes");
        goto done;
    }

    key_text(bytes, text);

    if (EVP_Digest(text, strlen(text), digest, &len, EVP_sha256(), NULL) != 1)
    {
        ledger_error("no SHA-256");
        goto done;
    }

    printf("# The key of %s, shown this once:\n%s\n"
           "# Its line in the file of llm_accounts:\nkey %s ",
           argv[1], text, argv[1]);

    for (i = 0; i < len; i++) {
        printf("%02x", digest[i]);
    }

    printf("\n");

    if (fflush(stdout) != 0 || ferror(stdout)) {
        ledger_error("cannot write the key");
        goto done;
    }

    rc = 0;

done:

    OPENSSL_cleanse(bytes, sizeof(bytes));
    OPENSSL_cleanse(text, sizeof(text));

    return rc;
}


static int
key_usage(FILE *out, int status)
{
    fputs("Usage: llm-ledger key NAME\n\n"
          "Makes an API key for the account NAME and prints it, and the line "
          "with its\nSHA-256 for the file of nginx's llm_accounts.  The key "
          "itself is kept nowhere.\nA file may have several keys of one "
          "account; it is read again when nginx\nreloads.\n", out);

    return status;
}


static int
key_name(const char *name)
{
    size_t  len;

    len = strlen(name);

    if (len == 0 || len >= LEDGER_NAME || name[0] == '-') {
        return -1;
    }

    return strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
                  "0123456789._@+:/-") == len ? 0 : -1;
}


static void
key_text(const uint8_t *bytes, char *text)
{
    char      *p;
    size_t     i;
    uint32_t   bits, n;

    static const char  digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                  "abcdefghijklmnopqrstuvwxyz0123456789-_";

    p = stpcpy(text, KEY_PREFIX);
    bits = 0;
    n = 0;

    for (i = 0; i < KEY_BYTES; i++) {
        bits = bits << 8 | bytes[i];
        n += 8;

        while (n >= 6) {
            n -= 6;
            *p++ = digits[bits >> n & 63];
        }
    }

    if (n != 0) {
        *p++ = digits[bits << (6 - n) & 63];
    }

    *p = '\0';
}
