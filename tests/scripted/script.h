/*
 * What a test asks of the scripted engine: lines of key=value words inside the
 * last user message or the prompt, each a script of its own.
 *
 * A line counts as a script if it starts with "script:" or if every word on it
 * is a known key=value; the rest of the text is what is echoed.
 *
 *     tokens=N        answer "w1 w2 ... wN"
 *     text=T          answer T, percent-encoded, one token per code point
 *     bytes=1         one token per byte instead (text, tokens and echo alike)
 *     batch=N         up to N tokens (at most 16) in one DELTA
 *     reasoning=N     N reasoning tokens "r1 r2 ..." before the answer
 *     first=MS        wait in the queue before ACCEPTED
 *     prefill=MS      wait between ACCEPTED and the first token
 *     delay=MS        wait between tokens
 *     finish=R        stop or length
 *     cached=N tags=N prompt_tokens=N rank=N     what ACCEPTED says
 *     evict=N         before FINISH the request's tags from number N (0 is the
 *                     first) on leave its rank's cache: eviction log
 *     log=N           before FINISH N records for a tag that nobody has
 *     epoch=N         before FINISH its rank's epoch goes up by N
 *     error=E         instead of ACCEPTED: invalid, length, template, model,
 *                     queue, timeout, shutdown or internal; with
 *                     param=NAME message=T retry=SECONDS
 *     fail_after=N    ERROR (internal, or what error= says) after N tokens
 *     die_after=N     the process exits after N tokens
 *     hang_after=N    after N tokens everything stops, heartbeat included
 *                     (these and corrupt: not again in a request that is
 *                     resumed from there)
 *     corrupt=C       a violation in the event ring after corrupt_after=N
 *                     tokens (0 if not given): head (cursor far ahead), size
 *                     (of a record), type, text (bad UTF-8), cursor (of the
 *                     submission ring), id (not in use), zero (request id 0),
 *                     order (ACCEPTED twice), token (entries beyond the
 *                     record)
 */

#ifndef SCRIPTED_SCRIPT_H
#define SCRIPTED_SCRIPT_H

#include <stddef.h>
#include <stdint.h>


enum { CORRUPT_NONE, CORRUPT_HEAD, CORRUPT_SIZE, CORRUPT_TYPE, CORRUPT_TEXT,
       CORRUPT_CURSOR, CORRUPT_ID, CORRUPT_ZERO, CORRUPT_ORDER,
       CORRUPT_TOKEN };

typedef struct {
    int64_t  tokens;             /* -1: echo */
    int64_t  reasoning;
    int64_t  first, prefill, delay;
    int64_t  batch, bytes;
    int64_t  finish;
    int64_t  error, retry;
    int64_t  fail_after, die_after, hang_after;      /* -1: never */
    int64_t  corrupt, corrupt_after;
    int64_t  cached, tags, prompt_tokens, rank;      /* -1: as it is */
    int64_t  evict;              /* -1: nothing */
    int64_t  log, epoch;
    char     param[64];
    char     message[200];
    char    *text;               /* malloc'd, or NULL */
    size_t   text_size;
} script_t;

typedef struct {
    const char  *name;
    int64_t      value;
} script_word_t;

/* Names of values; the last has none. */

extern const script_word_t  script_errors[];
extern const script_word_t  script_reasons[];
extern const script_word_t  script_corruptions[];


void script_init(script_t *s);

/* Takes a line without its end; 1 if it is a script. */
int script_line(script_t *s, const char *line, size_t len);

const char *script_name(const script_word_t *words, int64_t value);


#endif /* SCRIPTED_SCRIPT_H */
