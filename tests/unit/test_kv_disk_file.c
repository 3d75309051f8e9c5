/*
 * Block files: what is written is read back; nothing else is ever taken for
 * it, whatever a file holds, is called, or is.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <xxhash.h>

#include "unit/kv_disk_util.h"


#define WHOLE  (KV_FILE_HEAD + PAYLOAD)

static kv_dir_t       dir;
static kv_disk_key_t  key;
static char           name[KV_FILE_NAME];
static uint8_t        file[WHOLE];
static uint8_t        buf[WHOLE];


static int
setup(void **state)
{
    if (util_make_dir(state) != 0) {
        return -1;
    }

    memset(&dir, 0, sizeof(dir));
    dir.fd = open(dir_path, O_RDONLY | O_DIRECTORY);
    dir.fingerprint = PRINT;
    dir.payload = PAYLOAD;

    util_key(9, 3, &key);
    kv_file_name(&key, name);
    util_bytes(&key, file + KV_FILE_HEAD);

    return dir.fd == -1 || kv_file_write(&dir, &key, KV_FILE_DRAFTED, file,
                                          5000000007)
                           != KV_FILE_OK;
}


static int
teardown(void **state)
{
    close(dir.fd);

    return util_remove_dir(state);
}


static void
put(const char *as, const void *bytes, size_t size)
{
    int  fd;

    fd = openat(dir.fd, as, O_CREAT | O_TRUNC | O_WRONLY, 0600);
    assert_int_not_equal(fd, -1);
    assert_int_equal(write(fd, bytes, size), size);
    close(fd);
}


/* Header sums of a header that was made wrong on purpose. */

static void
seal(kv_head_t *head)
{
    head->head_sum = XXH3_64bits(head, offsetof(kv_head_t, head_sum));
}


static kv_file_rc_t
scan(void)
{
    int64_t    stamp;
    uint64_t   size;
    kv_head_t  head;

    return kv_file_scan(&dir, name, &head, &stamp, &size);
}


static void
test_same(void **state)
{
    int64_t       stamp;
    uint64_t      size;
    kv_head_t     head;
    struct stat   st;

    (void) state;

    assert_int_equal(kv_file_read(&dir, &key, buf), KV_FILE_OK);
    assert_memory_equal(buf, file, WHOLE);
    assert_true(util_is(buf + KV_FILE_HEAD, &key));

    assert_int_equal(kv_file_scan(&dir, name, &head, &stamp, &size),
                     KV_FILE_OK);
    assert_memory_equal(&head, file, KV_FILE_HEAD);
    assert_int_equal(stamp, 5000000007);
    assert_int_equal(head.flags, KV_FILE_DRAFTED);
    assert_int_equal(kv_file_size(PAYLOAD), FILE_SIZE);

    assert_int_equal(fstatat(dir.fd, name, &st, 0), 0);
    assert_int_equal(st.st_size, WHOLE);
    assert_int_equal(st.st_mode & 07777, 0600);

    assert_true(kv_file_is_name(name));
    assert_int_equal(util_files(NULL, 0), 1);
}


/* The name is taken, by whatever it is: that stays as it is. */

static void
test_taken(void **state)
{
    uint8_t  again[WHOLE];

    put(name, "mine", 4);

    memcpy(again, file, WHOLE);
    assert_int_equal(kv_file_write(&dir, &key, 0, again, 1), KV_FILE_FOREIGN);
    assert_int_equal(scan(), KV_FILE_FOREIGN);
    assert_int_equal(kv_file_read(&dir, &key, buf), KV_FILE_FOREIGN);
    assert_memory_equal(buf, "mine", 4);
    assert_int_equal(util_files(NULL, 0), 1);

    (void) state;
}


/* Without O_TMPFILE; a temporary file that was left behind is no obstacle. */

static void
test_named(void **state)
{
    (void) state;

    assert_int_equal(unlinkat(dir.fd, name, 0), 0);
    put("kv-block.tmp", file, 100);
    dir.named = 1;

    assert_int_equal(kv_file_write(&dir, &key, 0, file, 1), KV_FILE_OK);
    assert_int_equal(kv_file_read(&dir, &key, buf), KV_FILE_OK);
    assert_int_equal(util_files(kv_file_is_temporary, 0), 0);

    assert_int_equal(kv_file_write(&dir, &key, 0, file, 1), KV_FILE_FOREIGN);
    assert_int_equal(util_files(kv_file_is_temporary, 0), 0);
    assert_int_equal(kv_file_read(&dir, &key, buf), KV_FILE_OK);
}


static void
test_cut(void **state)
{
    size_t        n;
    kv_file_rc_t  want;

    (void) state;

    for (n = 0; n < WHOLE; n += n < KV_FILE_HEAD + 8 ? 1 : 97) {
        put(name, file, n);

        want = n > 0 && n < 8 ? KV_FILE_FOREIGN : KV_FILE_BAD;
        assert_int_equal(scan(), want);
        assert_int_equal(kv_file_read(&dir, &key, buf), want);
    }

    put(name, file, WHOLE - 1);
    assert_int_equal(scan(), KV_FILE_BAD);
    assert_int_equal(kv_file_read(&dir, &key, buf), KV_FILE_BAD);
}


static void
test_long(void **state)
{
    uint8_t  more[WHOLE + 1];

    (void) state;

    memcpy(more, file, WHOLE);
    more[WHOLE] = 0;
    put(name, more, sizeof(more));

    assert_int_equal(scan(), KV_FILE_BAD);
    assert_int_equal(kv_file_read(&dir, &key, buf), KV_FILE_BAD);
}


/* Each bit of the header, some of the payload. */

static void
test_flipped(void **state)
{
    size_t        i;
    uint64_t      rng;
    kv_file_rc_t  want;

    (void) state;
    rng = 1;

    for (i = 0; i < KV_FILE_HEAD * 8; i++) {
        file[i / 8] ^= (uint8_t) (1 << i % 8);
        put(name, file, WHOLE);

        want = i < 64 ? KV_FILE_FOREIGN : KV_FILE_BAD;
        assert_int_equal(scan(), want);
        assert_int_equal(kv_file_read(&dir, &key, buf), want);
        file[i / 8] ^= (uint8_t) (1 << i % 8);
    }

    for (i = 0; i < 2000; i++) {
        size_t  bit = KV_FILE_HEAD * 8 + random_next(&rng) % (PAYLOAD * 8);

        file[bit / 8] ^= (uint8_t) (1 << bit % 8);
        put(name, file, WHOLE);

        assert_int_equal(scan(), KV_FILE_OK);
        assert_int_equal(kv_file_read(&dir, &key, buf), KV_FILE_BAD);
        file[bit / 8] ^= (uint8_t) (1 << bit % 8);
    }

    put(name, file, WHOLE);
    assert_int_equal(kv_file_read(&dir, &key, buf), KV_FILE_OK);
}


/* Headers that are sound and do not fit. */

static void
test_unfit(void **state)
{
    int         i;
    kv_head_t   good, *head;
    kv_dir_t    other;

    (void) state;

    head = (kv_head_t *) file;
    good = *head;

    for (i = 0; i < 9; i++) {
        *head = good;

        switch (i) {
        case 0: head->version++; break;
        case 1: head->version = 0; break;
        case 2: head->fingerprint ^= 1; break;
        case 3: head->payload++; break;
        case 4: head->payload = UINT64_MAX; break;
        case 5: head->head_size = 4096; break;
        case 6: head->key.tenant.lo++; break;
        case 7: head->key.hash.hi++; break;
        case 8: head->flags = KV_FILE_FLAGS + 1; break;
        }

        seal(head);
        put(name, file, WHOLE);

        assert_int_equal(scan(), KV_FILE_BAD);
        assert_int_equal(kv_file_read(&dir, &key, buf), KV_FILE_BAD);
    }

    /* Another model's directory, or another size of block. */

    *head = good;
    put(name, file, WHOLE);

    other = dir;
    other.fingerprint++;
    assert_int_equal(kv_file_read(&other, &key, buf), KV_FILE_BAD);

    other = dir;
    other.payload -= 8;
    assert_int_equal(kv_file_read(&other, &key, buf), KV_FILE_BAD);
}


/* Another block of the same hash and tenant is sound, and not this one. */

static void
test_other(void **state)
{
    int            i;
    kv_head_t      good, *head;

    (void) state;

    head = (kv_head_t *) file;
    good = *head;

    for (i = 0; i < KV_BLOCK + 2; i++) {
        *head = good;

        if (i < KV_BLOCK) {
            head->key.ids[i] ^= 1;
        } else if (i == KV_BLOCK) {
            head->key.parent.lo ^= 1;
        } else {
            head->key.parent.hi ^= UINT64_C(1) << 63;
        }

        seal(head);
        put(name, file, WHOLE);

        assert_int_equal(scan(), KV_FILE_OK);
        assert_int_equal(kv_file_read(&dir, &key, buf), KV_FILE_OTHER);
    }
}


/* What is no file, and what is not there, harms nobody. */

static void
test_no_file(void **state)
{
    char  path[200];

    (void) state;

    assert_int_equal(unlinkat(dir.fd, name, 0), 0);
    assert_int_equal(scan(), KV_FILE_NONE);
    assert_int_equal(kv_file_read(&dir, &key, buf), KV_FILE_NONE);

    assert_int_equal(mkfifoat(dir.fd, name, 0600), 0);
    assert_int_equal(scan(), KV_FILE_FOREIGN);
    assert_int_equal(kv_file_read(&dir, &key, buf), KV_FILE_FOREIGN);
    assert_int_equal(unlinkat(dir.fd, name, 0), 0);

    assert_int_equal(mkdirat(dir.fd, name, 0700), 0);
    assert_int_equal(scan(), KV_FILE_FOREIGN);
    assert_int_equal(kv_file_write(&dir, &key, 0, file, 1), KV_FILE_FOREIGN);
    assert_int_equal(unlinkat(dir.fd, name, AT_REMOVEDIR), 0);

    put("elsewhere", file, WHOLE);
    snprintf(path, sizeof(path), "%s/elsewhere", dir_path);
    assert_int_equal(symlinkat(path, dir.fd, name), 0);
    assert_int_equal(scan(), KV_FILE_FOREIGN);
    assert_int_equal(kv_file_read(&dir, &key, buf), KV_FILE_FOREIGN);
}


static void
test_names(void **state)
{
    int   i;
    char  s[KV_FILE_NAME + 2];

    (void) state;

    for (i = 0; i < KV_FILE_NAME - 1; i++) {
        memcpy(s, name, KV_FILE_NAME);
        s[i] = 'g';
        assert_false(kv_file_is_name(s));
        s[i] = '\0';
        assert_false(kv_file_is_name(s));
    }

    snprintf(s, sizeof(s), "%s~", name);
    assert_false(kv_file_is_name(s));
    assert_false(kv_file_is_name(""));
    assert_false(kv_file_is_temporary(name));
    assert_false(kv_file_is_name("kv-block.tmp"));
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test_setup_teardown(test_same, setup, teardown),
        cmocka_unit_test_setup_teardown(test_taken, setup, teardown),
        cmocka_unit_test_setup_teardown(test_named, setup, teardown),
        cmocka_unit_test_setup_teardown(test_cut, setup, teardown),
        cmocka_unit_test_setup_teardown(test_long, setup, teardown),
        cmocka_unit_test_setup_teardown(test_flipped, setup, teardown),
        cmocka_unit_test_setup_teardown(test_unfit, setup, teardown),
        cmocka_unit_test_setup_teardown(test_other, setup, teardown),
        cmocka_unit_test_setup_teardown(test_no_file, setup, teardown),
        cmocka_unit_test_setup_teardown(test_names, setup, teardown)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
