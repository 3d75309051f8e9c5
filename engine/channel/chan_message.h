/*
 * What the records on a lane say.
 *
 * Every record starts with chan_record_t (size, type, flags, request id),
 * followed by the fixed part below and then by variable parts.  Multi-byte
 * parts are padded with zeros to 8 bytes.  Decoders take a private copy of a
 * record, check everything once, and hand out pointers into that copy.
 *
 *
 * WORKER TO ENGINE
 *
 *     SUBMIT        chan_submit_t, then the first bytes of the body
 *     SUBMIT_MORE   chan_more_t, then the next bytes of the body
 *     WINDOW        chan_window_t: credit returned
 *     CANCEL        nothing more
 *
 * The body is a sequence of sections, `body_size` bytes in all, a multiple of
 * 8; it may be cut at any multiple of 8 between records.  Of one request the
 * records are in order, but those of several requests may be interleaved.  An
 * id is in use from its SUBMIT to its FINISH or ERROR; a SUBMIT with an id in
 * use, or a SUBMIT_MORE beyond `body_size`, is a violation.  WINDOW and CANCEL
 * for an id that is not in use are ignored: they may cross a FINISH.  A CANCEL
 * is answered with FINISH (reason cancelled) unless FINISH or ERROR was already
 * under way, so a worker may reuse an id only after one of the two.
 *
 *
 * ENGINE TO WORKER
 *
 *     ACCEPTED      chan_accepted_t; at most once, when the request leaves the
 *                   queue for a rank
 *     DELTA         chan_delta_t, text, tokens
 *     FINISH        chan_finish_t; the last record of a request
 *     ERROR         chan_error_t, message, parameter; the last record too
 *
 * Before ACCEPTED only ERROR or (after CANCEL) FINISH may come.
 *
 *
 * CREDIT
 *
 * SUBMIT grants `credit` bytes of DELTA records (whole records, headers
 * included).  The engine subtracts each DELTA's size and stops computing that
 * sequence while its credit is <= 0, so at most one step's records exceed it.
 * WINDOW adds.  ACCEPTED, FINISH and ERROR cost nothing.  One grant is at most
 * CHAN_CREDIT_MAX; an engine keeps the sum below that too, so that no peer
 * makes it overflow.
 *
 *
 * ROOM
 *
 * A worker sends SUBMIT only if, after it, the submission ring still has
 * CHAN_REQUEST_RESERVE bytes for each request in flight, this one included,
 * so that CANCEL and one coalesced WINDOW always fit.
 *
 *
 * CANONICAL PROMPT, TAGS, TENANT
 *
 * The canonical prompt of a body is a string of bytes that both sides can make
 * from its sections, whatever template the model has:
 *
 *     chat          for each MESSAGE in order: one byte CHAN_CANON_ROLE + role,
 *                   then the content; of an ASSISTANT's content only what
 *                   follows the last "</think>", if there is one.  Nothing
 *                   stands between messages or after the last; the role's byte
 *                   (f9 ... fc) is never part of UTF-8, so no content looks
 *                   like another message
 *     TEXT          its bytes
 *     IDS           its int32_t, four bytes each, as they are in memory
 *
 * A tag names a whole prefix of it: all bytes before `end`, in one tenant and
 * one model.  Tags of a request are sorted by `end`, which rises strictly and
 * is at least 1; there are at most CHAN_TAGS_MAX, and those of a prompt that
 * continues another begin with the other's.  The module tags every whole block
 * of so many bytes; a block may end inside a code point or a token.  How a tag
 * is made is the module's own affair: for the engine it is a name to be given
 * back, and equal tags prove nothing.
 *
 * The last token of a tag is the one that holds the byte before `end`.  A
 * message's canonical content is a tail of its content, and so is what a
 * template renders of it: a byte is found by its distance from the content's
 * end.  A byte that is not rendered (a role's byte, what the template drops)
 * counts as the one before the rendered content's first.  A tag is resident on
 * a rank while the KV block of its last token is, and
 *
 *     ACCEPTED.tags_matched   counts the tags, from the first on without a gap,
 *                             whose last token lies in the cached prefix that
 *                             the request took over on that rank, or behind
 *                             it in blocks on disk, which any rank may have
 *     the eviction log        gets (rank, tag) when a tag stops being resident
 *                             there, before any later ACCEPTED; a tag that
 *                             never became resident is not logged
 *
 * RESUME
 *
 * A request that another engine had accepted goes on with RESUME_IDS: all ids
 * that came in its DELTAs, those of an ECHO apart, in order; `resume_bytes` is
 * how much text came with them and `seed` what ACCEPTED said.  The engine
 * brings its detokeniser, stop strings and reasoning to where they were and
 * sends neither those ids nor those bytes again; FINISH counts them.  Ids that
 * were the end already (end of text, a whole stop string, max_tokens) get
 * ACCEPTED, the text that is missing and FINISH.
 *
 * TENANT is the isolation key: cached KV is shared only between requests with
 * equal keys, none at all being one of them.  The module sends the account, a
 * zero byte and `user`, or `user` alone where there is no account.
 */

#ifndef CHAN_MESSAGE_H
#define CHAN_MESSAGE_H

#include "channel.h"

#ifdef __cplusplus
extern "C" {
#endif


enum {
    CHAN_SUBMIT      = 1,
    CHAN_SUBMIT_MORE = 2,
    CHAN_WINDOW      = 3,
    CHAN_CANCEL      = 4,

    CHAN_ACCEPTED    = 16,
    CHAN_DELTA       = 17,
    CHAN_FINISH      = 18,
    CHAN_ERROR_REC   = 19
};

#define CHAN_REQUEST_RESERVE                                                 \
    (2 * sizeof(chan_record_t) + sizeof(chan_window_t))

#define CHAN_BODY_MAX       (64u << 20)   /* bytes of a request's body */
#define CHAN_TOP_MAX        20            /* top_logprobs */
#define CHAN_CREDIT_MAX     (UINT64_C(1) << 40)


/* chan_submit_t.endpoint */
enum {
    CHAN_CHAT       = 1,     /* body has messages */
    CHAN_COMPLETION = 2      /* body has one text or one id list */
};

/* chan_submit_t.flags */
#define CHAN_F_LOGPROBS     0x0001   /* log-probabilities with each token */
#define CHAN_F_ECHO         0x0002   /* completion: the prompt comes first */
#define CHAN_F_SEED         0x0004   /* `seed` was given, else engine picks */
#define CHAN_F_THINK        0x0008   /* template: thinking on */
#define CHAN_F_NO_THINK     0x0010   /* template: thinking off */
#define CHAN_F_IGNORE_EOS   0x0020   /* benchmarks: go on to max_tokens */
#define CHAN_F_OWN_T        0x0040   /* the model's own temperature: it was */
#define CHAN_F_OWN_TOP_P    0x0080   /* not given; likewise top_p */
#define CHAN_F_ALL          0x00ff

#define CHAN_TOKENS_MAX     UINT32_MAX   /* max_tokens: what the context has */
#define CHAN_QUEUE_ANY      UINT32_MAX   /* queue_max: however many wait, for
                                            what was accepted before */

typedef struct {
    uint32_t  endpoint;
    uint32_t  flags;
    uint64_t  body_size;
    uint64_t  credit;
    uint64_t  seed;
    uint64_t  fingerprint;       /* model wanted, 0: any */
    uint32_t  max_tokens;        /* to generate; 0 with ECHO: only scores */
    uint32_t  max_context;       /* prompt + completion, 0: the model's */
    uint32_t  queue_max;         /* refuse if that many wait; 0: engine's own */
    uint32_t  queue_timeout;     /* ms in the queue; 0: no limit */
    uint32_t  deadline;          /* ms in all; 0: none */
    int32_t   priority;          /* higher first, 0 is normal */
    int32_t   rank_hint;         /* -1: none */
    uint32_t  top_logprobs;      /* 0 … CHAN_TOP_MAX */
    uint64_t  rank_epoch;        /* epoch that the hint was made for */
    float     temperature;       /* 0: argmax */
    float     top_p;             /* 1: off */
    float     min_p;             /* 0: off */
    float     repetition_penalty;    /* 1: off */
    float     presence_penalty;      /* 0: off */
    float     frequency_penalty;     /* 0: off */
    uint32_t  top_k;             /* 0: off */
    uint32_t  reserved;
    uint64_t  resume_bytes;      /* text bytes already delivered, RESUME_IDS */
} chan_submit_t;

/* Sections of the body: header, `size` bytes, zeros to a multiple of 8. */

enum {
    CHAN_SEC_MESSAGE    = 1,     /* chan_message_t, content (UTF-8) */
    CHAN_SEC_TEXT       = 2,     /* completion prompt (UTF-8) */
    CHAN_SEC_IDS        = 3,     /* completion prompt, int32_t[] */
    CHAN_SEC_STOP       = 4,     /* one stop string (UTF-8), 1 … 256 bytes */
    CHAN_SEC_BIAS       = 5,     /* chan_bias_t[], at most 1024 */
    CHAN_SEC_TAGS       = 6,     /* chan_tag_t[], `end` rising */
    CHAN_SEC_TENANT     = 7,     /* isolation key, bytes */
    CHAN_SEC_RESUME_IDS = 8      /* ids already generated, int32_t[] */
};

#define CHAN_TAGS_MAX       4096
#define CHAN_CANON_ROLE     0xf8     /* plus CHAN_ROLE_*, in canonical bytes */

#define CHAN_STOP_MAX       16   /* stop strings of a request */
#define CHAN_STOP_LEN       256
#define CHAN_BIAS_MAX       1024

typedef struct {
    uint32_t  kind;
    uint32_t  size;
} chan_section_head_t;

enum {
    CHAN_ROLE_SYSTEM    = 1,
    CHAN_ROLE_USER      = 2,
    CHAN_ROLE_ASSISTANT = 3,
    CHAN_ROLE_TOOL      = 4
};

typedef struct {
    uint32_t  role;
    uint32_t  flags;             /* 0 */
} chan_message_t;

typedef struct {
    int32_t   id;
    float     bias;              /* -100 … 100 */
} chan_bias_t;

typedef struct {
    uint64_t  tag;
    uint64_t  end;               /* bytes of the canonical prompt, from 1 */
} chan_tag_t;

typedef struct {
    uint64_t  offset;            /* of these bytes in the body */
} chan_more_t;

typedef struct {
    uint64_t  credit;
} chan_window_t;


typedef struct {
    uint32_t  prompt_tokens;
    uint32_t  cached_tokens;
    uint32_t  tags_matched;
    uint32_t  rank;
    uint64_t  rank_epoch;
    uint64_t  seed;              /* in use, given or picked */
} chan_accepted_t;

/* chan_delta_t.kind */
enum {
    CHAN_CONTENT   = 1,
    CHAN_REASONING = 2,
    CHAN_TOOL_CALL = 3,
    CHAN_ECHO      = 4           /* text and tokens of the prompt itself */
};

typedef struct {
    uint32_t  kind;
    uint32_t  n_tokens;
    uint32_t  text_size;         /* UTF-8, whole code points, may be 0 */
    uint32_t  token_size;        /* bytes of all token entries */
} chan_delta_t;                  /* text (padded to 8), entries follow */

/*
 * A token entry: chan_token_t, `size` bytes of the token, then `n_top` times
 * chan_top_t and its bytes; every part padded to 8.  Bytes and alternatives
 * are there only if log-probabilities were asked for.  `logprob` is NaN where
 * there is none (first prompt token, or not asked for).
 */

typedef struct {
    int32_t   id;
    float     logprob;
    uint32_t  size;
    uint32_t  n_top;
} chan_token_t;

typedef struct {
    int32_t   id;
    float     logprob;
    uint32_t  size;
    uint32_t  reserved;
} chan_top_t;

/* chan_finish_t.reason */
enum {
    CHAN_STOP      = 1,
    CHAN_LENGTH    = 2,
    CHAN_CANCELLED = 3,
    CHAN_TOOLS     = 4
};

typedef struct {
    uint32_t  reason;
    uint32_t  prompt_tokens;
    uint32_t  cached_tokens;
    uint32_t  completion_tokens;
    uint32_t  reasoning_tokens;
    uint32_t  rank;
    uint64_t  step;              /* board's step number at the end */
    uint64_t  queue_us;          /* SUBMIT to ACCEPTED */
    uint64_t  first_us;          /* SUBMIT to first token */
    uint64_t  total_us;          /* SUBMIT to FINISH */
} chan_finish_t;

/* chan_error_t.code; in brackets what the module makes of it */
enum {
    CHAN_E_INVALID  = 1,         /* a parameter is wrong (400) */
    CHAN_E_LENGTH   = 2,         /* context_length_exceeded (400) */
    CHAN_E_TEMPLATE = 3,         /* this model has no chat template (400) */
    CHAN_E_MODEL    = 4,         /* another model than asked for (404) */
    CHAN_E_QUEUE    = 5,         /* queue full (429) */
    CHAN_E_TIMEOUT  = 6,         /* queue time limit or deadline (503) */
    CHAN_E_SHUTDOWN = 7,         /* engine is going down (503) */
    CHAN_E_INTERNAL = 8          /* (500) */
};

typedef struct {
    uint32_t  code;
    uint32_t  retry_after;       /* seconds, 0: none */
    uint32_t  message_size;      /* UTF-8 */
    uint32_t  param_size;        /* parameter's name, may be 0 */
} chan_error_t;                  /* message, parameter follow, each padded */


/*
 * Sections of a body.
 *
 * chan_body_put() appends a section made of `fixed` (may be NULL) and `bytes`
 * to a growing buffer, which is zeroed before the first call and freed with
 * chan_body_free(); CHAN_ERROR: no memory, or CHAN_BODY_MAX.
 * chan_body_check() walks a whole body once: kinds, sizes, UTF-8, roles,
 * counts, and what `submit` demands of it.  chan_body_next() then iterates:
 * `*off` starts at 0; CHAN_AGAIN at the end.
 */

typedef struct {
    uint8_t  *data;
    size_t    size;
    size_t    cap;
} chan_body_t;

typedef struct {
    uint32_t        kind;
    uint32_t        role;        /* of a message */
    const uint8_t  *data;        /* content without chan_message_t, aligned 8 */
    size_t          size;        /* bytes */
} chan_section_t;

int chan_body_put(chan_body_t *body, uint32_t kind, const void *fixed,
    size_t fixed_size, const void *bytes, size_t size);
void chan_body_free(chan_body_t *body);
int chan_body_check(const chan_submit_t *submit, const uint8_t *body,
    size_t size, char *err);
int chan_body_next(const uint8_t *body, size_t size, size_t *off,
    chan_section_t *sec);


/*
 * Decoders check a private copy of a record (as chan_ring_read() made it) and
 * point into it; CHAN_ERROR: a violation.
 */

typedef struct {
    const chan_delta_t  *delta;
    const uint8_t       *text;
    const uint8_t       *tokens;
} chan_delta_view_t;

typedef struct {
    const chan_token_t  *token;
    const uint8_t       *bytes;
    const uint8_t       *tops;
} chan_token_view_t;

typedef struct {
    const chan_top_t    *top;
    const uint8_t       *bytes;
} chan_top_view_t;

typedef struct {
    const chan_error_t  *error;
    const char          *message;     /* not NUL-terminated */
    const char          *param;
} chan_error_view_t;

int chan_get_submit(const chan_record_t *rec, const chan_submit_t **submit,
    const uint8_t **body, size_t *size, char *err);
int chan_get_more(const chan_record_t *rec, uint64_t *offset,
    const uint8_t **body, size_t *size, char *err);
int chan_get_window(const chan_record_t *rec, uint64_t *credit, char *err);
int chan_get_accepted(const chan_record_t *rec,
    const chan_accepted_t **accepted, char *err);
int chan_get_delta(const chan_record_t *rec, chan_delta_view_t *view,
    char *err);
int chan_get_finish(const chan_record_t *rec, const chan_finish_t **finish,
    char *err);
int chan_get_error(const chan_record_t *rec, chan_error_view_t *view,
    char *err);

/*
 * Iterate what chan_get_delta() has checked: `*p` starts at view.tokens (or a
 * token view's tops) and advances; call exactly n_tokens (n_top) times.
 */

void chan_next_token(const uint8_t **p, chan_token_view_t *view);
void chan_next_top(const uint8_t **p, chan_top_view_t *view);

/* Whether `s` is valid UTF-8 (no surrogates, no overlong forms, <= 10FFFF). */
int chan_utf8_valid(const void *s, size_t len);


#ifdef __cplusplus
}
#endif

#endif /* CHAN_MESSAGE_H */
