/*
 * Options of the command line, one parser for all commands.
 *
 * GNU long form: `--name value` or `--name=value`; `--` ends the options.
 * `--config FILE` reads the same names from a file, one `name value` a line,
 * `#` starts a comment; what the command line says wins.  `--help` and
 * `--version` are everywhere.
 *
 * A command describes itself by a cli_command_t: which groups of the engine's
 * options it takes (cli_engine_t) and a table of its own.
 *
 *     static int
 *     cli_x(int argc, char **argv)
 *     {
 *         int           rc;
 *         uint32_t      max_tokens = 64;
 *         cli_engine_t  opt;
 *
 *         cli_option_t  own[] = {
 *             { "max-tokens", "N", CLI_UINT, &max_tokens,
 *               "tokens to make", 1, 1e6 },
 *             { NULL }
 *         };
 *
 *         cli_command_t  cmd = {
 *             "x", "[TEXT]", "what it does", CLI_G_MODEL|CLI_G_COMPUTE, own, 1
 *         };
 *
 *         rc = cli_parse(&cmd, &opt, argc, argv);
 *         if (rc >= 0) {
 *             return rc;
 *         }
 *         ...
 */

#ifndef CLI_CLI_OPTIONS_H
#define CLI_CLI_OPTIONS_H

#include <stddef.h>
#include <stdint.h>


#define CLI_VERSION         "0.1.0"

#define CLI_EXIT_USAGE      2        /* exit status of a wrong command line */

/* Groups of the engine's options. */
#define CLI_G_MODEL         0x01     /* --model, required */
#define CLI_G_COMPUTE       0x02     /* backend, ranks, threads, KV, batch */
#define CLI_G_SERVE         0x04     /* socket, lanes, queue */
#define CLI_G_NODES         0x08     /* several nodes */

typedef enum {
    CLI_FLAG,                        /* int, set to 1; no value */
    CLI_STRING,                      /* const char *, not empty */
    CLI_UINT,                        /* uint32_t */
    CLI_U64,                         /* uint64_t */
    CLI_SIZE,                        /* uint64_t, bytes; suffix K, M, G, T */
    CLI_FLOAT,                       /* double, finite */
    CLI_MODE,                        /* uint32_t, octal, at most 0777 */
    CLI_WORD,                        /* uint32_t, index into `words` */
    CLI_LIST                         /* cli_list_t, numbers split by commas */
} cli_kind_t;

#define CLI_LIST_MAX        16

typedef struct {
    uint32_t  n;
    uint32_t  value[CLI_LIST_MAX];
} cli_list_t;

typedef struct {
    const char         *name;        /* without dashes; NULL ends the table */
    const char         *metavar;     /* for --help */
    cli_kind_t          kind;
    void               *value;       /* holds the default before parsing */
    const char         *help;
    double              min;         /* of numbers and list members */
    double              max;         /* 0: the type's own limit */
    const char *const  *words;       /* of CLI_WORD, NULL-terminated */
} cli_option_t;

typedef struct {
    const char          *name;
    const char          *args;       /* positional arguments, for --help */
    const char          *about;      /* one line */
    unsigned             groups;     /* CLI_G_… */
    const cli_option_t  *own;        /* may be NULL */
    int                  max_args;   /* positional arguments allowed */
} cli_command_t;

/* --compute, --weights, --kv-type, --ahead, --load and --log-level */
enum { CLI_COMPUTE_AUTO = 0, CLI_COMPUTE_F32, CLI_COMPUTE_BF16 };
enum { CLI_WEIGHTS_AUTO = 0, CLI_WEIGHTS_BF16, CLI_WEIGHTS_FP8,
       CLI_WEIGHTS_INT8, CLI_WEIGHTS_INT4 };
enum { CLI_KV_AUTO = 0, CLI_KV_FP8 };
enum { CLI_INPUTS_AUTO = 0, CLI_INPUTS_BF16, CLI_INPUTS_FP8 };
enum { CLI_AHEAD_AUTO = 0, CLI_AHEAD_ON, CLI_AHEAD_OFF };

/*
 * Rows of a rank in a step whose halves still keep experts busy: of V3's on
 * eight ranks each half then has 128 of them, with which weights are read no
 * faster than they are multiplied.
 */
#define CLI_OVERLAP  1024

enum { CLI_LOAD_AUTO = 0, CLI_LOAD_MAP, CLI_LOAD_COPY };
enum { CLI_LOG_ERROR = 0, CLI_LOG_WARN, CLI_LOG_NOTICE, CLI_LOG_INFO,
       CLI_LOG_DEBUG };

typedef struct {
    const char  *model;              /* directory */
    uint32_t     log_level;

    /* CLI_G_COMPUTE; 0 means: choose */
    const char  *backend;            /* "cpu" */
    uint32_t     ranks;              /* 1 … 64 */
    uint32_t     threads;            /* per rank; set after parsing */
    uint32_t     compute;            /* CLI_COMPUTE_… */
    uint32_t     weights;            /* CLI_WEIGHTS_… */
    uint32_t     expert_inputs;      /* CLI_INPUTS_… */
    uint32_t     load;               /* CLI_LOAD_… */
    uint32_t     pin;                /* first CPU, UINT32_MAX: none */
    const char  *kernels;            /* kernel path or NULL */
    int          absorbed;           /* attention of prompts, on a device */
    int          deterministic;      /* on a device */
    uint64_t     kv_memory;          /* per rank, bytes */
    uint32_t     kv_type;            /* CLI_KV_… */
    uint32_t     max_context;
    uint32_t     max_batch;          /* sequences per rank */
    uint32_t     speculate;          /* tokens guessed at most, 0: none */
    int          speculate_always;
    uint32_t     prefill_chunk;      /* rows of prompts per step and rank */
    uint32_t     ahead;              /* CLI_AHEAD_… */
    uint32_t     overlap;            /* rows, 0: never */
    uint32_t     redundant;          /* slots of experts beyond one each */
    double       balance_interval;   /* seconds; 0: experts stay */
    double       balance_gain;       /* percent that is worth a move */

    /* CLI_G_NODES */
    const char  *nodes;              /* number, "auto", or NULL */
    uint32_t     n_nodes;            /* from cli_nodes_find() */
    uint32_t     node_rank;
    const char  *rendezvous;         /* HOST:PORT, or NULL */
    double       join_timeout;       /* seconds */
    double       node_timeout;

    /* CLI_G_SERVE */
    const char  *kv_cache_dir;       /* or NULL */
    uint64_t     kv_cache_size;      /* bytes */
    const char  *model_name;         /* NAME[,ALIAS…] or NULL */
    const char  *socket;
    uint32_t     socket_mode;
    const char  *socket_group;       /* or NULL */
    uint32_t     queue;              /* waiting requests at most */
    uint32_t     prefix_cache;       /* 1: on */
    uint32_t     max_lanes;

    int          argc;               /* positional arguments */
    char       **argv;
} cli_engine_t;


/*
 * Fills `opt` with defaults and parses; argv[0] is the command's name.
 * Returns -1 to go on, or an exit status: 0 after --help or --version,
 * CLI_EXIT_USAGE after a message on stderr that names option and value.
 * Strings point into argv or into memory that lives as long as the process.
 */
int cli_parse(const cli_command_t *cmd, cli_engine_t *opt, int argc,
    char **argv);

/* Parses "64M" and the like; 0, or -1. */
int cli_parse_size(const char *s, uint64_t *size);

/* Threads of each rank, unless the command line says: the cores shared out. */
uint32_t cli_threads(uint32_t ranks);

/*
 * From how many rows on a step of `ranks` ranks, of `max_rows` at most, goes in
 * two micro-batches; 0: none does.
 */
uint32_t cli_overlap(uint32_t rows, uint32_t ranks, uint32_t max_rows);

/* How many rows a step has during which the next is prepared; 0: none has. */
uint32_t cli_ahead(const cli_engine_t *opt);

/* "llm-engine: …" on stderr. */
void cli_error(const char *fmt, ...)
    __attribute__((format(printf, 1, 2)));


/* The commands; each returns an exit status. */

int cli_serve(int argc, char **argv);
int cli_generate(int argc, char **argv);
int cli_score(int argc, char **argv);
int cli_tokenize(int argc, char **argv);
int cli_detokenize(int argc, char **argv);
int cli_bench(int argc, char **argv);
int cli_status(int argc, char **argv);
int cli_convert(int argc, char **argv);
int cli_plan(int argc, char **argv);

#endif /* CLI_CLI_OPTIONS_H */
