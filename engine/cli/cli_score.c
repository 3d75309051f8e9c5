/*
 * llm-engine score: the log-probability of each token of a text.
 *
 * A line of the input is a JSON array of token ids, taken as it is, or a JSON
 * string, which is tokenised and gets a BOS where the model wants one.  The
 * output has one JSON array a line: null for the first token, then the
 * natural logarithm of each next token's probability.
 *
 * With --mtp it is the multi-token prediction layer that is asked: for each
 * token from the third, its probability after the one before it and the
 * model's state at the one before that.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli_engine.h"
#include "cli/cli_options.h"
#include "json/json.h"
#include "model/model.h"
#include "sample/sample.h"
#include "tokenizer/tok.h"


typedef struct {
    int32_t  *id;
    size_t    n;
    float    *logprob;               /* [n], the first ones unused */
} score_line_t;

typedef struct {
    cli_engine_t      opt;
    const char       *ids;           /* files */
    const char       *text;
    uint32_t          chunk;
    int               mtp;
    model_t          *model;
    tok_t            *tok;
    cli_ranks_t      *ranks;
    sample_t         *sample;
    uint8_t          *known;         /* [vocab] ones */
    score_line_t     *line;
    size_t            n_lines;
    size_t            max_lines;
    size_t            longest;
    uint32_t          n_blocks;      /* of a sequence */

    /* Of one step, by rank. */
    cli_step_t       *step;
    int32_t          *block;         /* the same for all ranks */
    const int32_t   **blocks;
    uint32_t         *pos;           /* [ranks][chunk] */
    uint32_t         *seq;           /* zeros */
    uint32_t         *row;           /* 0 … chunk - 1 */
    uint32_t          first;         /* position that has MTP keys */
    float            *logits;        /* [ranks][chunk][vocab] */
} score_t;


static int score_read(score_t *s);
static int score_parse(score_t *s, char *text, size_t len, size_t line,
    score_line_t *out);
static int score_parse_ids(score_t *s, json_t *j, score_line_t *out);
static int score_parse_text(score_t *s, json_t *j, size_t len,
    score_line_t *out, char *err);
static int score_open(score_t *s);
static int score_scratch(score_t *s);
static int score_all(score_t *s);
static int score_group(score_t *s, size_t first, size_t n);
static void score_rank(score_t *s, uint32_t rank, score_line_t *line,
    size_t done);
static void score_draft(score_t *s, uint32_t rank);
static void score_keep(score_t *s, uint32_t rank, score_line_t *line,
    size_t done);
static void score_print(const score_line_t *line, size_t unknown);
static void score_close(score_t *s);


int
cli_score(int argc, char **argv)
{
    int            rc;
    score_t        s;
    cli_command_t  cmd;

    memset(&s, 0, sizeof(s));

    cli_option_t  own[] = {
        { "ids", "FILE", CLI_STRING, &s.ids, "lines of token ids" },
        { "text", "FILE", CLI_STRING, &s.text, "lines of strings" },
        { "chunk", "N", CLI_UINT, &s.chunk,
          "tokens of a step and rank (default: --prefill-chunk)", 1, 65536 },
        { "mtp", NULL, CLI_FLAG, &s.mtp,
          "of the multi-token prediction layer instead" },
        { NULL }
    };

    memset(&cmd, 0, sizeof(cmd));
    cmd.name = "score";
    cmd.args = "";
    cmd.about = "Prints the log-probability of each token of each line of "
                "FILE or stdin.";
    cmd.groups = CLI_G_MODEL|CLI_G_COMPUTE;
    cmd.own = own;

    rc = cli_parse(&cmd, &s.opt, argc, argv);
    if (rc >= 0) {
        return rc;
    }

    if (s.ids != NULL && s.text != NULL) {
        cli_error("--ids and --text exclude each other");
        return CLI_EXIT_USAGE;
    }

    if (s.chunk == 0) {
        s.chunk = s.opt.prefill_chunk;
    }

    rc = 1;

    if (score_open(&s) == 0 && score_read(&s) == 0 && score_scratch(&s) == 0
        && score_all(&s) == 0)
    {
        rc = 0;
    }

    score_close(&s);

    return rc;
}


static int
score_open(score_t *s)
{
    char  err[ERR_LEN];

    s->model = model_open(s->opt.model, err);

    if (s->model == NULL) {
        cli_error("%s", err);
        return -1;
    }

    return 0;
}


static int
score_read(score_t *s)
{
    int             rc;
    char           *text;
    FILE           *f;
    size_t          size, line;
    ssize_t         n;
    const char     *path;
    score_line_t   *grown;

    path = (s->ids != NULL) ? s->ids : s->text;
    f = (path != NULL) ? fopen(path, "re") : stdin;

    if (f == NULL) {
        cli_error("%s: %s", path, strerror(errno));
        return -1;
    }

    rc = 0;
    text = NULL;
    size = 0;

    for (line = 1; rc == 0 && (n = getline(&text, &size, f)) != -1; line++) {

        if (s->n_lines == s->max_lines) {
            s->max_lines = s->max_lines * 2 + 64;
            grown = realloc(s->line, s->max_lines * sizeof(score_line_t));

            if (grown == NULL) {
                cli_error("no memory for line %zu", line);
                rc = -1;
                break;
            }

            s->line = grown;
        }

        memset(&s->line[s->n_lines], 0, sizeof(score_line_t));
        s->n_lines++;
        rc = score_parse(s, text, (size_t) n, line, &s->line[s->n_lines - 1]);
    }

    if (rc == 0 && ferror(f)) {
        cli_error("the input cannot be read: %s", strerror(errno));
        rc = -1;
    }

    free(text);

    if (f != stdin) {
        fclose(f);
    }

    return rc;
}


static int
score_parse(score_t *s, char *text, size_t len, size_t line,
    score_line_t *out)
{
    int       rc;
    char      err[ERR_LEN];
    json_t    j;
    uint32_t  max;

    json_init(&j, text, len, err);

    if (json_peek(&j) == '[' && s->text == NULL) {
        rc = score_parse_ids(s, &j, out);

    } else if (json_peek(&j) == '"' && s->ids == NULL) {
        rc = score_parse_text(s, &j, len, out, err);

    } else {
        snprintf(err, ERR_LEN, "neither an array of ids nor a string");
        rc = -1;
    }

    if (rc != 0 || json_end(&j) != 0) {
        cli_error("line %zu: %s", line, err);
        return -1;
    }

    max = model_config(s->model)->max_context;

    if (s->opt.max_context != 0 && s->opt.max_context < max) {
        max = s->opt.max_context;
    }

    if (out->n > max) {
        cli_error("line %zu: %zu tokens, at most %u are possible", line,
                  out->n, max);
        return -1;
    }

    if (out->n > s->longest) {
        s->longest = out->n;
    }

    return 0;
}


static int
score_parse_ids(score_t *s, json_t *j, score_line_t *out)
{
    int        rc, first;
    size_t     max;
    int32_t   *grown;
    uint64_t   id;

    max = 0;
    first = 1;

    if (json_open(j, '[') != 0) {
        return -1;
    }

    while ((rc = json_next(j, ']', &first, NULL, 0)) == 1) {

        if (json_uint(j, &id) != 0) {
            return -1;
        }

        if (id >= model_config(s->model)->vocab) {
            snprintf(j->err, ERR_LEN, "the model has no token %llu",
                     (unsigned long long) id);
            return -1;
        }

        if (out->n == max) {
            max = max * 2 + 256;
            grown = realloc(out->id, max * sizeof(int32_t));

            if (grown == NULL) {
                snprintf(j->err, ERR_LEN, "no memory");
                return -1;
            }

            out->id = grown;
        }

        out->id[out->n++] = (int32_t) id;
    }

    return rc;
}


static int
score_parse_text(score_t *s, json_t *j, size_t len, score_line_t *out,
    char *err)
{
    int         rc;
    char       *text;
    size_t      bos;
    tok_ids_t   ids;

    memset(&ids, 0, sizeof(ids));
    rc = -1;

    if (s->tok == NULL) {
        s->tok = tok_open(s->opt.model, err);

        if (s->tok == NULL
            || tok_fits(s->tok, model_config(s->model)->vocab, err) != 0)
        {
            return -1;
        }
    }

    text = malloc(len + 1);
    if (text == NULL) {
        snprintf(err, ERR_LEN, "no memory");
        return -1;
    }

    if (json_string(j, text, len + 1) != 0
        || tok_encode(s->tok, text, strlen(text), NULL, 0, &ids, err) != 0)
    {
        goto done;
    }

    bos = tok_add_bos(s->tok) && tok_bos(s->tok) >= 0;
    out->id = malloc((ids.n + bos + 1) * sizeof(int32_t));

    if (out->id == NULL) {
        snprintf(err, ERR_LEN, "no memory");
        goto done;
    }

    out->id[0] = tok_bos(s->tok);

    if (ids.n != 0) {
        memcpy(out->id + bos, ids.id, ids.n * sizeof(int32_t));
    }

    out->n = ids.n + bos;
    rc = 0;

done:

    tok_ids_free(&ids);
    free(text);

    return rc;
}


static int
score_scratch(score_t *s)
{
    char                  err[ERR_LEN];
    size_t                i, rows, vocab;
    cli_ranks_options_t   opt;

    vocab = model_config(s->model)->vocab;

    if (s->chunk > s->longest) {
        s->chunk = s->longest > 0 ? (uint32_t) s->longest : 1;
    }

    s->n_blocks = (uint32_t) (s->longest / BE_BLOCK + 1);

    cli_ranks_options(&s->opt, &opt);
    opt.max_rows = s->chunk;
    opt.max_logits = s->chunk;
    opt.kv_blocks = s->n_blocks;
    opt.mtp = s->mtp;
    s->first = 1;

    if (cli_ranks_weights(s->model, &opt.weights, err) == 0
        && cli_engine_load(s->model, &s->opt, &opt, err) == 0)
    {
        s->ranks = cli_ranks_open(s->model, &opt, err);
    }

    if (s->ranks == NULL) {
        cli_error("%s", err);
        return -1;
    }

    rows = (size_t) s->opt.ranks * s->chunk;

    s->step = calloc(s->opt.ranks, sizeof(cli_step_t));
    s->block = calloc(s->n_blocks, sizeof(int32_t));
    s->blocks = calloc(1, sizeof(int32_t *));
    s->pos = calloc(rows, sizeof(uint32_t));
    s->seq = calloc(s->chunk, sizeof(uint32_t));
    s->row = calloc(s->chunk, sizeof(uint32_t));
    s->logits = malloc(rows * vocab * sizeof(float));

    s->known = malloc(vocab);

    if (s->known != NULL) {
        memset(s->known, 1, vocab);
        s->sample = sample_open((uint32_t) vocab, s->known, 1);
    }

    if (s->step == NULL || s->block == NULL || s->blocks == NULL
        || s->pos == NULL || s->seq == NULL || s->row == NULL
        || s->logits == NULL || s->sample == NULL)
    {
        cli_error("no memory for steps of %u tokens", s->chunk);
        return -1;
    }

    for (i = 0; i < s->n_blocks; i++) {
        s->block[i] = (int32_t) i;
    }

    for (i = 0; i < s->chunk; i++) {
        s->row[i] = (uint32_t) i;
    }

    s->blocks[0] = s->block;

    return 0;
}


/* As many lines side by side as there are ranks. */

static int
score_all(score_t *s)
{
    size_t  i, n;

    for (i = 0; i < s->n_lines; i += n) {
        n = s->n_lines - i;

        if (n > s->opt.ranks) {
            n = s->opt.ranks;
        }

        if (score_group(s, i, n) != 0) {
            return -1;
        }
    }

    if (fflush(stdout) != 0) {
        cli_error("the output cannot be written: %s", strerror(errno));
        return -1;
    }

    return 0;
}


static int
score_group(score_t *s, size_t first, size_t n)
{
    char           err[ERR_LEN];
    size_t         done, longest;
    uint32_t       i;
    score_line_t  *line;

    longest = 0;
    line = &s->line[first];

    for (i = 0; i < n; i++) {
        longest = line[i].n > longest ? line[i].n : longest;
        line[i].logprob = calloc(line[i].n + 1, sizeof(float));

        if (line[i].logprob == NULL) {
            cli_error("no memory for %zu tokens", line[i].n);
            return -1;
        }
    }

    /* the last token's own logits are of no token of the line */

    for (done = 0; done + 1 < longest; done += s->chunk) {

        for (i = 0; i < s->opt.ranks; i++) {
            score_rank(s, i, i < n ? &line[i] : NULL, done);
        }

        if (cli_ranks_step(s->ranks, s->step, err) != 0) {
            cli_error("%s", err);
            return -1;
        }

        for (i = 0; s->mtp && i < s->opt.ranks; i++) {
            score_draft(s, i);
        }

        if (s->mtp && cli_ranks_draft(s->ranks, s->step, err) != 0) {
            cli_error("%s", err);
            return -1;
        }

        for (i = 0; i < n; i++) {
            score_keep(s, i, &line[i], done);
        }
    }

    for (i = 0; i < n; i++) {
        score_print(&line[i], s->mtp ? 2 : 1);
        free(line[i].logprob);
        line[i].logprob = NULL;
    }

    return 0;
}


static void
score_rank(score_t *s, uint32_t rank, score_line_t *line, size_t done)
{
    uint32_t     i, rows;
    uint32_t    *pos;
    cli_step_t  *step;

    step = &s->step[rank];
    memset(step, 0, sizeof(cli_step_t));

    if (line == NULL || done + 1 >= line->n) {
        return;
    }

    rows = s->chunk;

    if (rows > line->n - 1 - done) {
        rows = (uint32_t) (line->n - 1 - done);
    }

    pos = s->pos + (size_t) rank * s->chunk;

    for (i = 0; i < rows; i++) {
        pos[i] = (uint32_t) done + i;
    }

    step->batch.n_rows = rows;
    step->batch.id = line->id + done;
    step->batch.pos = pos;
    step->batch.seq = s->seq;
    step->batch.n_seqs = 1;
    step->batch.blocks = s->blocks;
    step->logit_row = s->row;
    step->n_logits = rows;
    step->logits = s->logits
                   + (size_t) rank * s->chunk * model_config(s->model)->vocab;
}


/* The same rows, each with the token that follows. */

static void
score_draft(score_t *s, uint32_t rank)
{
    uint32_t     i, *pos;
    cli_step_t  *step;

    step = &s->step[rank];
    pos = s->pos + (size_t) rank * s->chunk;

    for (i = 0; i < step->batch.n_rows; i++) {
        pos[i]++;
    }

    step->batch.id++;
    step->batch.first = &s->first;
    step->from = s->row;
}


static void
score_keep(score_t *s, uint32_t rank, score_line_t *line, size_t done)
{
    size_t             vocab, at;
    uint32_t           i;
    const cli_step_t  *step;

    step = &s->step[rank];
    vocab = model_config(s->model)->vocab;

    for (i = 0; i < step->n_logits; i++) {
        at = done + i + (s->mtp ? 2 : 1);

        if (at < line->n) {
            line->logprob[at] = sample_logprob(s->sample,
                step->logits + i * vocab, line->id[at], NULL, 0);
        }
    }
}


static void
score_print(const score_line_t *line, size_t unknown)
{
    size_t  i;

    putchar('[');

    for (i = 0; i < line->n; i++) {
        fputs(i > 0 ? ", " : "", stdout);

        if (i < unknown) {
            fputs("null", stdout);

        } else {
            printf("%.9g", line->logprob[i]);
        }
    }

    puts("]");
}


static void
score_close(score_t *s)
{
    size_t  i;

    for (i = 0; i < s->n_lines; i++) {
        free(s->line[i].id);
        free(s->line[i].logprob);
    }

    cli_ranks_close(s->ranks);
    model_close(s->model);
    sample_close(s->sample);
    tok_close(s->tok);
    free(s->known);
    free(s->line);
    free(s->step);
    free(s->block);
    free(s->blocks);
    free(s->pos);
    free(s->seq);
    free(s->row);
    free(s->logits);
}
