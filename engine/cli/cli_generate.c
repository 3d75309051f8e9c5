/*
 * llm-engine generate: continues a prompt on the terminal.
 *
 * The prompt is a message for the model's chat template, or with --raw (and
 * where there is no template) a text to continue.  It comes from the command
 * line or from stdin; the answer goes to stdout as it is made.
 */

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "cli/cli_engine.h"
#include "cli/cli_nodes.h"
#include "tokenizer/tok_stream.h"
#include "tokenizer/tok_template.h"


#define GENERATE_PROMPT_MAX  (64u << 20)     /* bytes */


typedef struct {
    cli_engine_t      opt;
    uint32_t          max_tokens;
    double            temperature;   /* -1: the model's */
    double            top_p;
    double            min_p;
    uint32_t          top_k;
    double            repetition;
    uint64_t          seed;
    const char       *system;
    int               raw;
    int               think;
    int               no_think;
    int               stats;

    cli_stack_t       st;
    sched_t          *sched;
    sched_seq_t      *seq;
    uint8_t          *known;

    char             *prompt;
    size_t            prompt_len;
    unsigned          flags;         /* of the stream */
    int32_t          *id;            /* of the prompt; then the scheduler's */
    uint32_t          n_prompt;
    uint32_t          max;           /* tokens of prompt and answer */

    tok_stream_t      stream;        /* touched by the rank's leader alone */
    int               reasoned;
    double            start;
    double            prompt_time;

    pthread_mutex_t   lock;
    pthread_cond_t    wake;
    int               ended;
    sched_finish_t    finish;
    char              err[SCHED_ERR_LEN];
} generate_t;


static int generate_prompt(generate_t *g);
static int generate_stdin(generate_t *g);
static int generate_open(generate_t *g);
static int generate_encode(generate_t *g, char *err);
static int generate_chat(generate_t *g, tok_ids_t *ids, char *err);
static int generate_ids(generate_t *g, const tok_ids_t *ids, int bos,
    char *err);
static int generate_sched(generate_t *g, char *err);
static int generate_run(generate_t *g);
static int generate_submit(generate_t *g);
static void generate_accepted(void *data, const sched_accepted_t *a);
static int generate_tokens(void *data, sched_kind_t kind,
    const sched_token_t *tok, uint32_t n);
static void generate_finish(void *data, const sched_finish_t *f);
static void generate_failed(void *ctx, const char *reason);
static void generate_stats(const generate_t *g);
static void generate_write(const tok_stream_out_t *out, int *reasoned);
static double generate_now(void);
static void generate_close(generate_t *g);


static const sched_ops_t  generate_ops = {
    generate_accepted, generate_tokens, generate_finish, NULL, generate_failed
};


int
cli_generate(int argc, char **argv)
{
    int            rc;
    generate_t     g;
    cli_command_t  cmd;

    memset(&g, 0, sizeof(g));
    g.max_tokens = 512;
    g.temperature = -1;
    g.top_p = -1;
    g.repetition = 1;
    pthread_mutex_init(&g.lock, NULL);
    pthread_cond_init(&g.wake, NULL);

    if (getrandom(&g.seed, sizeof(g.seed), 0) != sizeof(g.seed)) {
        g.seed = (uint64_t) time(NULL);
    }

    cli_option_t  own[] = {
        { "max-tokens", "N", CLI_UINT, &g.max_tokens, "tokens to make", 1,
          16777216 },
        { "temperature", "T", CLI_FLOAT, &g.temperature,
          "0 takes the likeliest (default: the model's)", 0, 100 },
        { "top-p", "P", CLI_FLOAT, &g.top_p, "(default: the model's)", 0, 1 },
        { "top-k", "K", CLI_UINT, &g.top_k, "0: all" },
        { "min-p", "P", CLI_FLOAT, &g.min_p, "", 0, 1 },
        { "repetition-penalty", "R", CLI_FLOAT, &g.repetition, "1: none",
          0.01, 100 },
        { "seed", "N", CLI_U64, &g.seed, "(default: random)" },
        { "system", "TEXT", CLI_STRING, &g.system, "system message" },
        { "raw", NULL, CLI_FLAG, &g.raw, "continue the text, no template" },
        { "think", NULL, CLI_FLAG, &g.think, "ask for reasoning" },
        { "no-think", NULL, CLI_FLAG, &g.no_think, "ask for none" },
        { "stats", NULL, CLI_FLAG, &g.stats, "print speeds to stderr" },
        { NULL }
    };

    memset(&cmd, 0, sizeof(cmd));
    cmd.name = "generate";
    cmd.args = "[PROMPT]";
    cmd.about = "Answers PROMPT, or what stdin says.";
    cmd.groups = CLI_G_MODEL|CLI_G_COMPUTE|CLI_G_NODES;
    cmd.own = own;
    cmd.max_args = 1;

    rc = cli_parse(&cmd, &g.opt, argc, argv);
    if (rc >= 0) {
        return rc;
    }

    if (g.think && g.no_think) {
        cli_error("--think and --no-think exclude each other");
        return CLI_EXIT_USAGE;
    }

    rc = 1;
    g.opt.max_batch = 1;

    if (generate_prompt(&g) == 0 && generate_open(&g) == 0
        && generate_run(&g) == 0)
    {
        rc = 0;
    }

    generate_close(&g);

    return rc;
}


static int
generate_prompt(generate_t *g)
{
    if (g->opt.argc > 0) {
        g->prompt = strdup(g->opt.argv[0]);

        if (g->prompt == NULL) {
            cli_error("no memory for the prompt");
            return -1;
        }

        g->prompt_len = strlen(g->prompt);

        return 0;
    }

    if (generate_stdin(g) != 0) {
        return -1;
    }

    /* the line feed that ends a typed line is not part of it */

    if (g->prompt_len > 0 && g->prompt[g->prompt_len - 1] == '\n') {
        g->prompt_len--;
    }

    return 0;
}


static int
generate_stdin(generate_t *g)
{
    char    *grown;
    size_t   n, max;

    max = 0;

    for ( ;; ) {

        if (g->prompt_len == max) {
            max = max * 2 + 4096;
            grown = max <= GENERATE_PROMPT_MAX ? realloc(g->prompt, max)
                                               : NULL;

            if (grown == NULL) {
                cli_error("the prompt is too long");
                return -1;
            }

            g->prompt = grown;
        }

        n = fread(g->prompt + g->prompt_len, 1, max - g->prompt_len, stdin);
        g->prompt_len += n;

        if (n == 0) {
            break;
        }
    }

    if (ferror(stdin)) {
        cli_error("stdin: %s", strerror(errno));
        return -1;
    }

    return 0;
}


static int
generate_open(generate_t *g)
{
    char  err[ERR_LEN];

    if (cli_nodes_find(&g->opt, err) != 0
        || cli_stack_open(&g->st, &g->opt, 1, err) != 0
        || generate_encode(g, err) != 0 || generate_sched(g, err) != 0)
    {
        cli_error("%s", err);
        return -1;
    }

    return 0;
}


static int
generate_encode(generate_t *g, char *err)
{
    int         rc, raw;
    tok_ids_t   ids;

    memset(&ids, 0, sizeof(ids));
    raw = g->raw || tok_template(g->st.tok) == TOK_TEMPLATE_NONE;

    if (raw) {
        g->flags = TOK_STREAM_RAW;
        rc = tok_encode(g->st.tok, g->prompt, g->prompt_len, NULL, 0, &ids,
                        err);

    } else {
        rc = generate_chat(g, &ids, err);
    }

    if (rc == 0) {
        rc = generate_ids(g, &ids,
                          raw && tok_add_bos(g->st.tok) && tok_bos(g->st.tok) >= 0,
                          err);
    }

    tok_ids_free(&ids);

    return rc;
}


static int
generate_chat(generate_t *g, tok_ids_t *ids, char *err)
{
    int             rc;
    size_t          n;
    tok_prompt_t    prompt;
    tok_message_t   msg[2];

    memset(&prompt, 0, sizeof(prompt));
    n = 0;

    if (g->system != NULL) {
        msg[n].role = TOK_ROLE_SYSTEM;
        msg[n].content = g->system;
        msg[n++].len = strlen(g->system);
    }

    msg[n].role = TOK_ROLE_USER;
    msg[n].content = g->prompt;
    msg[n++].len = g->prompt_len;

    rc = tok_render(g->st.tok, msg, n, g->think ? 1 : g->no_think ? 0 : -1,
                    &prompt, err);

    if (rc == 0) {
        g->flags = prompt.in_reasoning ? TOK_STREAM_REASONING : 0;
        rc = tok_encode(g->st.tok, prompt.text, prompt.len, prompt.trusted,
                        prompt.n_trusted, ids, err);
    }

    tok_prompt_free(&prompt);

    return rc;
}


/* An answer may fill what the prompt leaves of the context. */

static int
generate_ids(generate_t *g, const tok_ids_t *ids, int bos, char *err)
{
    size_t    i;
    uint32_t  context;

    context = g->st.max_context;

    if (ids->n + bos == 0) {
        snprintf(err, ERR_LEN, "the prompt is empty");
        return -1;
    }

    if (ids->n + bos >= context) {
        snprintf(err, ERR_LEN, "the prompt has %zu tokens, the context %u",
                 ids->n + bos, context);
        return -1;
    }

    g->n_prompt = (uint32_t) ids->n + bos;
    g->max = context;

    if (g->max_tokens < context - g->n_prompt) {
        g->max = g->n_prompt + g->max_tokens;
    }

    g->id = calloc(g->n_prompt, sizeof(int32_t));
    if (g->id == NULL) {
        snprintf(err, ERR_LEN, "no memory for %u tokens", g->n_prompt);
        return -1;
    }

    g->id[0] = tok_bos(g->st.tok);

    for (i = 0; i < ids->n; i++) {
        g->id[bos + i] = ids->id[i];
    }

    return 0;
}


static int
generate_sched(generate_t *g, char *err)
{
    uint32_t         i;
    sched_options_t  opt;

    cli_stack_sched(&g->st, &g->opt, &opt);
    g->known = calloc(opt.vocab, 1);

    if (g->known == NULL) {
        snprintf(err, ERR_LEN, "no memory for sampling");
        return -1;
    }

    for (i = 0; i < opt.vocab; i++) {
        g->known[i] = tok_known(g->st.tok, (int32_t) i) != 0;
    }

    opt.known = g->known;
    opt.queue_max = 1;
    opt.ops = &generate_ops;
    opt.ops_ctx = g;

    g->sched = sched_open(&opt, err);

    return g->sched != NULL ? sched_start(g->sched, err) : -1;
}


static int
generate_run(generate_t *g)
{
    char              err[ERR_LEN];
    tok_stream_out_t  out;

    if (tok_stream_init(&g->stream, g->st.tok, NULL, 0, g->flags) != 0) {
        cli_error("no memory for the text");
        return -1;
    }

    g->start = generate_now();

    if (generate_submit(g) != 0) {
        cli_error("no memory for the prompt");
        return -1;
    }

    pthread_mutex_lock(&g->lock);

    while (!g->ended) {
        pthread_cond_wait(&g->wake, &g->lock);
    }

    pthread_mutex_unlock(&g->lock);

    if (g->err[0] != '\0') {
        cli_error("%s", g->err);
        return -1;
    }

    tok_stream_flush(&g->stream, &out);
    generate_write(&out, &g->reasoned);
    putchar('\n');

    if (g->stats) {
        generate_stats(g);
    }

    if (fflush(stdout) != 0) {
        cli_error("stdout: %s", strerror(errno));
        return -1;
    }

    /* others may still need this node's experts */

    if (g->st.nodes != NULL && ep_nodes_linger(g->st.nodes, err) != 0) {
        cli_error("%s", err);
        return -1;
    }

    return 0;
}


static int
generate_submit(generate_t *g)
{
    sched_request_t        q;
    const model_config_t  *c;

    c = model_config(g->st.model);

    memset(&q, 0, sizeof(q));
    q.data = g;
    q.ids = g->id;
    q.n_prompt = g->n_prompt;
    q.max_tokens = g->max - g->n_prompt;
    q.rank_hint = -1;
    q.credit = INT64_MAX / 2;
    q.params.temperature = g->temperature < 0 ? c->temperature
                                              : (float) g->temperature;
    q.params.top_p = g->top_p < 0 ? c->top_p : (float) g->top_p;
    q.params.min_p = (float) g->min_p;
    q.params.top_k = g->top_k;
    q.params.repetition_penalty = (float) g->repetition;
    q.params.seed = g->seed;

    g->id = NULL;

    return sched_submit(g->sched, &q, &g->seq);
}


static void
generate_accepted(void *data, const sched_accepted_t *a)
{
    (void) data;
    (void) a;
}


static int
generate_tokens(void *data, sched_kind_t kind, const sched_token_t *tok,
    uint32_t n)
{
    uint32_t           i;
    generate_t        *g = data;
    tok_stream_out_t   out;

    (void) kind;

    if (g->prompt_time == 0) {
        g->prompt_time = generate_now() - g->start;
    }

    for (i = 0; i < n; i++) {

        if (tok[i].eos || tok[i].id == tok_eos(g->st.tok)) {
            return 1;
        }

        tok_stream_push(&g->stream, tok[i].id, &out);
        generate_write(&out, &g->reasoned);
    }

    return 0;
}


static void
generate_finish(void *data, const sched_finish_t *f)
{
    generate_t  *g = data;

    pthread_mutex_lock(&g->lock);

    if (f->message != NULL && g->err[0] == '\0') {
        snprintf(g->err, sizeof(g->err), "%s", f->message);
    }

    g->finish = *f;
    g->ended = 1;
    pthread_cond_signal(&g->wake);
    pthread_mutex_unlock(&g->lock);
}


/* Comes before finish(), and says why. */

static void
generate_failed(void *ctx, const char *reason)
{
    generate_t  *g = ctx;

    pthread_mutex_lock(&g->lock);
    snprintf(g->err, sizeof(g->err), "%s", reason);
    pthread_mutex_unlock(&g->lock);
}


static void
generate_stats(const generate_t *g)
{
    double                 time;
    const sched_finish_t  *f;

    f = &g->finish;
    time = generate_now() - g->start - g->prompt_time;

    fprintf(stderr, "prompt: %u tokens, %.3f s; answer: %u tokens, %.3f s, "
            "%.1f tokens/s; seed %llu\n", g->n_prompt, g->prompt_time,
            f->n_output, time, f->n_output / time,
            (unsigned long long) g->seed);

    if (g->opt.speculate > 0) {
        fprintf(stderr, "guesses: %u, %u right\n", f->n_drafted, f->n_hit);
    }
}


static void
generate_write(const tok_stream_out_t *out, int *reasoned)
{
    if (out->reasoning_len > 0) {
        fwrite(out->reasoning, 1, out->reasoning_len, stdout);
        *reasoned = 1;
    }

    if (out->content_len > 0) {

        if (*reasoned) {
            fputs("\n\n", stdout);
            *reasoned = 0;
        }

        fwrite(out->content, 1, out->content_len, stdout);
    }

    fflush(stdout);
}


static double
generate_now(void)
{
    struct timespec  ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);

    return (double) ts.tv_sec + (double) ts.tv_nsec * 1e-9;
}


static void
generate_close(generate_t *g)
{
    if (g->seq != NULL) {
        sched_release(g->seq);
    }

    sched_close(g->sched);
    tok_stream_free(&g->stream);
    cli_stack_close(&g->st);
    free(g->known);
    free(g->prompt);
    free(g->id);
    pthread_mutex_destroy(&g->lock);
    pthread_cond_destroy(&g->wake);
}
