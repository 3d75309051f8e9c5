/*
 * The option parser of the command line and of configuration files.
 */

#include "cli/cli_common.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>


#define CLI_CONFIG_MAX  (1 << 20)    /* bytes of a configuration file */
#define CLI_WHERE_LEN   512


typedef struct {
    const cli_command_t  *cmd;
    cli_common_t          common[CLI_COMMON_MAX];
    size_t                n_common;
    const char           *config;
    char                  where[CLI_WHERE_LEN];
} cli_parser_t;


static const cli_option_t *cli_find(cli_parser_t *p, const char *name,
    size_t len, int any_group);
static int cli_set(cli_parser_t *p, const cli_option_t *o, const char *value);
static int cli_number(const char *s, double *v);
static int cli_set_list(const cli_option_t *o, const char *value);
static int cli_config(cli_parser_t *p);
static int cli_config_line(cli_parser_t *p, char *line, int n);
static char *cli_config_read(const char *path);
static int cli_arguments(cli_parser_t *p, cli_engine_t *opt, int argc,
    char **argv, int pass);
static void cli_help(cli_parser_t *p);
static void cli_help_option(const cli_option_t *o);


/* What configuration files were read into: strings point into it. */
static char  *cli_config_text;


void
cli_error(const char *fmt, ...)
{
    va_list  ap;

    fputs("llm-engine: ", stderr);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
}


int
cli_parse(const cli_command_t *cmd, cli_engine_t *opt, int argc, char **argv)
{
    int           rc;
    cli_parser_t  p;

    memset(&p, 0, sizeof(p));
    p.cmd = cmd;

    cli_engine_defaults(opt);
    p.n_common = cli_engine_table(opt, &p.config, p.common);

    /* The first pass finds --config, --help and --version alone. */

    rc = cli_arguments(&p, opt, argc, argv, 1);
    if (rc >= 0) {
        return rc;
    }

    if (p.config != NULL && cli_config(&p) != 0) {
        return CLI_EXIT_USAGE;
    }

    rc = cli_arguments(&p, opt, argc, argv, 2);
    if (rc >= 0) {
        return rc;
    }

    return cli_engine_check(cmd, opt);
}


/*
 * `any_group`: a configuration file is shared by all commands, so it may hold
 * options of the engine that this command has no use for.
 */

static const cli_option_t *
cli_find(cli_parser_t *p, const char *name, size_t len, int any_group)
{
    size_t               i;
    const cli_option_t  *o;

    for (o = p->cmd->own; o != NULL && o->name != NULL; o++) {
        if (strlen(o->name) == len && memcmp(o->name, name, len) == 0) {
            return o;
        }
    }

    for (i = 0; i < p->n_common; i++) {
        o = &p->common[i].o;

        if (strlen(o->name) != len || memcmp(o->name, name, len) != 0) {
            continue;
        }

        if (any_group || p->common[i].group == 0
            || (p->cmd->groups & p->common[i].group) != 0)
        {
            return o;
        }
    }

    return NULL;
}


static int
cli_number(const char *s, double *v)
{
    char  *end;

    if (!isdigit((unsigned char) *s) && *s != '-' && *s != '.') {
        return -1;
    }

    errno = 0;
    *v = strtod(s, &end);

    if (end == s || *end != '\0' || errno != 0 || !isfinite(*v)) {
        return -1;
    }

    return 0;
}


int
cli_parse_size(const char *s, uint64_t *size)
{
    char      *end;
    unsigned   shift;
    uint64_t   v;

    if (!isdigit((unsigned char) *s)) {
        return -1;
    }

    errno = 0;
    v = strtoull(s, &end, 10);
    if (errno != 0) {
        return -1;
    }

    shift = 0;

    switch (*end) {

    case 'k': case 'K':
        shift = 10;
        break;

    case 'm': case 'M':
        shift = 20;
        break;

    case 'g': case 'G':
        shift = 30;
        break;

    case 't': case 'T':
        shift = 40;
        break;
    }

    if (shift != 0) {
        end++;
    }

    if (*end != '\0' || v > (UINT64_MAX >> shift)) {
        return -1;
    }

    *size = v << shift;
    return 0;
}


static int
cli_set_list(const cli_option_t *o, const char *value)
{
    char        *end;
    const char  *p;
    long         v;
    cli_list_t   list;

    list.n = 0;

    for (p = value; ; p = end + 1) {

        if (!isdigit((unsigned char) *p) || list.n == CLI_LIST_MAX) {
            return -1;
        }

        errno = 0;
        v = strtol(p, &end, 10);

        if (errno != 0 || v < o->min || v > (o->max != 0 ? o->max : 1e9)) {
            return -1;
        }

        list.value[list.n++] = (uint32_t) v;

        if (*end == '\0') {
            break;
        }

        if (*end != ',') {
            return -1;
        }
    }

    *(cli_list_t *) o->value = list;
    return 0;
}


/* 0, or -1 after a message. */

static int
cli_set(cli_parser_t *p, const cli_option_t *o, const char *value)
{
    char         *end;
    double        v, max;
    uint32_t      i;
    uint64_t      size;
    const char   *must;

    must = NULL;
    v = 0;

    switch (o->kind) {

    case CLI_FLAG:
        *(int *) o->value = 1;
        return 0;

    case CLI_STRING:
        if (*value == '\0') {
            must = "must not be empty";
            break;
        }

        *(const char **) o->value = value;
        return 0;

    case CLI_UINT:
        max = o->max != 0 ? o->max : (double) UINT32_MAX;

        if (cli_number(value, &v) != 0 || v != floor(v)) {
            must = "is not a whole number";
            break;
        }

        if (v < o->min || v > max) {
            cli_error("%s%s: \"%s\" is out of range, %.0f to %.0f", p->where,
                      o->name, value, o->min, max);
            return -1;
        }

        *(uint32_t *) o->value = (uint32_t) v;
        return 0;

    case CLI_U64:
        errno = 0;
        size = strtoull(value, &end, 10);

        if (!isdigit((unsigned char) *value) || *end != '\0' || errno != 0) {
            must = "is not a number of 64 bits";
            break;
        }

        *(uint64_t *) o->value = size;
        return 0;

    case CLI_SIZE:
        if (cli_parse_size(value, &size) != 0 || (double) size < o->min) {
            must = "is not a size; write for instance 512M or 4G";
            break;
        }

        *(uint64_t *) o->value = size;
        return 0;

    case CLI_FLOAT:
        if (cli_number(value, &v) != 0) {
            must = "is not a number";
            break;
        }

        if (v < o->min || (o->max != 0 && v > o->max)) {
            cli_error("%s%s: \"%s\" is out of range, %g to %g", p->where,
                      o->name, value, o->min, o->max);
            return -1;
        }

        *(double *) o->value = v;
        return 0;

    case CLI_MODE:
        size = strtoul(value, &end, 8);

        if (!isdigit((unsigned char) *value) || *end != '\0' || size > 0777) {
            must = "is not an octal mode such as 0660";
            break;
        }

        *(uint32_t *) o->value = (uint32_t) size;
        return 0;

    case CLI_WORD:
        for (i = 0; o->words[i] != NULL; i++) {
            if (strcmp(o->words[i], value) == 0) {
                *(uint32_t *) o->value = i;
                return 0;
            }
        }

        cli_error("%s%s: \"%s\" is not known; it takes %s", p->where, o->name,
                  value, o->help);
        return -1;

    case CLI_LIST:
        if (cli_set_list(o, value) != 0) {
            must = "is not a list of numbers such as 1,8,32";
            break;
        }

        return 0;
    }

    cli_error("%s%s: \"%s\" %s", p->where, o->name, value, must);
    return -1;
}


static char *
cli_config_read(const char *path)
{
    FILE    *f;
    char    *text;
    size_t   n;

    f = fopen(path, "re");
    if (f == NULL) {
        cli_error("--config: %s: %s", path, strerror(errno));
        return NULL;
    }

    text = malloc(CLI_CONFIG_MAX + 1);
    if (text == NULL) {
        cli_error("--config: no memory");
        fclose(f);
        return NULL;
    }

    n = fread(text, 1, CLI_CONFIG_MAX + 1, f);

    if (ferror(f) || n > CLI_CONFIG_MAX || memchr(text, '\0', n) != NULL) {
        cli_error("--config: %s: not a readable text of at most 1M", path);
        fclose(f);
        free(text);
        return NULL;
    }

    fclose(f);
    text[n] = '\0';

    return text;
}


static int
cli_config(cli_parser_t *p)
{
    int    n;
    char  *line, *next;

    free(cli_config_text);

    cli_config_text = cli_config_read(p->config);
    if (cli_config_text == NULL) {
        return -1;
    }

    n = 0;

    for (line = cli_config_text; line != NULL; line = next) {

        next = strchr(line, '\n');
        if (next != NULL) {
            *next++ = '\0';
        }

        if (cli_config_line(p, line, ++n) != 0) {
            return -1;
        }
    }

    return 0;
}


static int
cli_config_line(cli_parser_t *p, char *line, int n)
{
    char                *end, *value;
    size_t               len;
    const cli_option_t  *o;

    while (isspace((unsigned char) *line)) {
        line++;
    }

    if (*line == '\0' || *line == '#') {
        return 0;
    }

    /* A comment starts at a `#` that follows white space. */

    for (end = line + 1; *end != '\0'; end++) {
        if (*end == '#' && isspace((unsigned char) end[-1])) {
            *end = '\0';
            break;
        }
    }

    while (end > line && isspace((unsigned char) end[-1])) {
        *--end = '\0';
    }

    len = strcspn(line, " \t");
    value = line + len;

    while (isspace((unsigned char) *value)) {
        value++;
    }

    snprintf(p->where, sizeof(p->where), "%.400s:%d: ", p->config, n);

    o = cli_find(p, line, len, 1);

    if (o == NULL || strcmp(o->name, "config") == 0) {
        cli_error("%sunknown option \"%.*s\"", p->where, (int) len, line);
        return -1;
    }

    if (o->kind != CLI_FLAG && *value == '\0') {
        cli_error("%s%s needs a value", p->where, o->name);
        return -1;
    }

    if (o->kind == CLI_FLAG && *value != '\0') {
        cli_error("%s%s takes no value, \"%s\" given", p->where, o->name,
                  value);
        return -1;
    }

    return cli_set(p, o, value);
}


static int
cli_arguments(cli_parser_t *p, cli_engine_t *opt, int argc, char **argv,
    int pass)
{
    int                  i, plain, wanted;
    char                *arg, *value;
    size_t               len;
    const cli_option_t  *o;

    snprintf(p->where, sizeof(p->where), "--");
    opt->argc = 0;
    opt->argv = argv + 1;
    plain = 0;

    for (i = 1; i < argc; i++) {

        arg = argv[i];

        if (plain || arg[0] != '-' || arg[1] == '\0') {

            if (pass == 2) {
                if (opt->argc == p->cmd->max_args) {
                    cli_error("%s: unexpected argument \"%s\"", p->cmd->name,
                              arg);
                    return CLI_EXIT_USAGE;
                }

                /* Moves to the front: argv[1 … argc] is only shortened. */
                opt->argv[opt->argc++] = arg;
            }

            continue;
        }

        if (strcmp(arg, "--") == 0) {
            plain = 1;
            continue;
        }

        if (strcmp(arg, "--help") == 0) {
            cli_help(p);
            return 0;
        }

        if (strcmp(arg, "--version") == 0) {
            printf("llm-engine %s\n", CLI_VERSION);
            return 0;
        }

        value = strchr(arg, '=');
        len = value != NULL ? (size_t) (value - arg) : strlen(arg);

        o = NULL;
        if (len > 2 && arg[1] == '-') {
            o = cli_find(p, arg + 2, len - 2, 0);
        }

        if (o == NULL) {
            cli_error("%s: unknown option \"%.*s\"; see llm-engine %s --help",
                      p->cmd->name, (int) len, arg, p->cmd->name);
            return CLI_EXIT_USAGE;
        }

        if (o->kind == CLI_FLAG) {
            if (value != NULL) {
                cli_error("--%s takes no value, \"%s\" given", o->name,
                          value + 1);
                return CLI_EXIT_USAGE;
            }

        } else if (value != NULL) {
            value++;

        } else if (++i < argc) {
            value = argv[i];

        } else {
            cli_error("--%s needs a value", o->name);
            return CLI_EXIT_USAGE;
        }

        wanted = strcmp(o->name, "config") == 0 ? 1 : 2;

        if (pass == wanted && cli_set(p, o, value) != 0) {
            return CLI_EXIT_USAGE;
        }
    }

    return -1;
}


static void
cli_help_option(const cli_option_t *o)
{
    char  left[64];

    snprintf(left, sizeof(left), "--%s%s%s", o->name,
             o->kind == CLI_FLAG ? "" : " ",
             o->kind == CLI_FLAG ? "" : o->metavar);

    printf("  %-28s %s\n", left, o->help);
}


static void
cli_help(cli_parser_t *p)
{
    size_t               i;
    const cli_option_t  *o;

    printf("Usage: llm-engine %s [OPTION]...%s%s\n\n%s\n\n", p->cmd->name,
           p->cmd->args != NULL ? " " : "",
           p->cmd->args != NULL ? p->cmd->args : "", p->cmd->about);

    for (o = p->cmd->own; o != NULL && o->name != NULL; o++) {
        cli_help_option(o);
    }

    /* An option of the command's own takes the place of a common one. */

    for (i = 0; i < p->n_common; i++) {
        o = &p->common[i].o;

        if (cli_find(p, o->name, strlen(o->name), 0) == o) {
            cli_help_option(o);
        }
    }

    printf("  %-28s %s\n", "--help", "this text");
    printf("  %-28s %s\n", "--version", "the version");
}
