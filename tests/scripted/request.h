/*
 * One request of the scripted engine: its body as it arrives, and the answer
 * that its script makes, token by token.
 */

#ifndef SCRIPTED_REQUEST_H
#define SCRIPTED_REQUEST_H

#include "channel/chan_message.h"

#include "scripted/script.h"


#define PIECE_MAX  1024          /* a token's text; longer words are cut */

typedef struct {
    uint32_t  start, size;
    int32_t   id;
} piece_t;

typedef struct {
    char     *text;              /* malloc'd */
    size_t    size;
    piece_t  *piece;             /* malloc'd */
    size_t    n;
} pieces_t;

/* A token to be sent. */

typedef struct {
    int32_t      id;
    uint32_t     kind;
    const char  *text;
    uint32_t     size;
    float        logprob;
    uint32_t     n_top;
} token_t;

enum { REQ_COLLECTS, REQ_QUEUED, REQ_RUNS, REQ_DONE };

typedef struct request_s  request_t;

struct request_s {
    request_t      *next;
    void           *lane;
    uint64_t        id;
    int             state;
    int             cancelled;
    int             queued, refused;
    int             wrong_bytes;     /* resume_bytes is not what was sent */
    int64_t         credit;

    chan_submit_t   submit;
    uint8_t        *body;
    size_t          have;

    script_t        script;
    pieces_t        prompt;          /* completion: exactly the prompt */
    pieces_t        answer;
    int64_t         n_prompt;        /* tokens, as reported */
    int64_t         n_reason;
    int64_t         n_total;         /* tokens to generate */
    size_t          cut;             /* answer bytes before a stop string */
    uint32_t        reason;
    uint64_t        seed;
    uint32_t        rank;

    int64_t         echoed;          /* prompt tokens sent */
    int64_t         pos;             /* generated tokens sent */
    int64_t         from;            /* those of them by another engine */
    size_t          shown;           /* answer bytes sent */
    char            carry[4];        /* start of a code point */
    uint32_t        n_carry;
    char            word[32];

    int64_t         arrived, accepted, first, due;   /* us, 0: not yet */
};


/*
 * Called with the whole, checked body: reads the script, counts the prompt and
 * prepares the answer.  -1: no memory.
 */
int request_prepare(request_t *r);
void request_free(request_t *r);

/* Prompt token number `i`; the first has nothing before it. */
void request_echo_token(request_t *r, int64_t i, token_t *t);

/* Generated token number `i`; its text may live in r->word. */
void request_token(request_t *r, int64_t i, token_t *t);

/* How many of `size` bytes end on a code point's border. */
uint32_t whole_chars(const char *s, uint32_t size);


#endif /* SCRIPTED_REQUEST_H */
