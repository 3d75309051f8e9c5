/*
 * The shared-memory channel between nginx workers and llm-engine.
 *
 * This is the only code that both sides link.  It knows neither nginx nor
 * the model: it moves records.  What the records say is in chan_message.h,
 * what the engine publishes for everybody is in chan_board.h.
 *
 *
 * CONNECTION
 *
 * The engine listens on a Unix stream socket; PATH.lock, held by flock(),
 * keeps a second engine from the same path.  A worker connects and sends one
 * chan_hello_t.  The engine checks magic, version and SO_PEERCRED and answers
 * with one chan_welcome_t; if its status is CHAN_WELCOME_OK, four descriptors
 * travel with it (SCM_RIGHTS), in this order:
 *
 *     lane          memfd, private to this worker, mapped read-write by both
 *     board         memfd, one for all workers, sealed against new writable
 *                   mappings before it is handed out
 *     bell_engine   eventfd, the worker rings it, the engine sleeps on it
 *     bell_worker   eventfd, the engine rings it, the worker sleeps on it
 *
 * Nothing else is ever sent on the socket.  Its end is the peer's death; a
 * byte on it after the handshake is a violation.
 *
 *
 * LANE FORMAT (all integers in host order; both sides share one machine)
 *
 *     offset     0  chan_lane_head_t: magic, version, sizes, set before the
 *                   lane is handed over and never written again
 *     offset   256  control of the submission ring, chan_ring_ctl_t
 *     offset   512  control of the event ring, chan_ring_ctl_t
 *     offset  4096  submission bytes, `sub_size` (a power of two)
 *     then          event bytes, `ev_size` (a power of two)
 *
 * A ring is a single-producer single-consumer byte ring of records.  `head`
 * and `tail` count bytes since the lane was made and never wrap in practice
 * (2^64); a byte with count c lives at offset c & (size - 1).  A record is
 * 8-byte aligned, starts with chan_record_t and may continue at the ring's
 * start: both sides copy in two parts, there is no padding record.
 *
 *
 * WRITERS
 *
 *     field            submission ring        event ring
 *     head             worker                 engine
 *     data             worker                 engine
 *     tail             engine                 worker
 *     consumer_sleeps  engine sets, either clears    worker sets, either clears
 *     producer_waits   worker sets, either clears    engine sets, either clears
 *
 * The producer stores data, then `head` (release).  The consumer loads `head`
 * (acquire), copies the record out, then stores `tail` (release).  Each side
 * keeps its own cursor in private memory and never reads it back from the
 * lane.
 *
 *
 * DOORBELLS
 *
 * A side that is about to sleep stores its flag, then a full fence, then
 * loads the other side's cursor once more.  A side that has stored its cursor
 * then a full fence, loads the other's flag; if set, it clears the flag and
 * writes the other's eventfd.  Without both fences wakeups are lost (store
 * buffering).  A clear always comes before a write of the eventfd, so a
 * cleared flag with nobody awake cannot happen unless the peer died between
 * the two, and then the socket says so.
 *
 *
 * TRUST AND RECOVERY
 *
 * The peer may be hostile or may have died between any two instructions.
 * Cursors are checked on each load (distance <= size, multiple of 8); a
 * record's size is checked against what is there and against
 * CHAN_RECORD_MAX before it is copied; the copy is then checked, never the
 * original.  A violation returns CHAN_ERROR with a text and the owner drops
 * the lane, not the process.  No lock ever lives in the lane.  A half-written
 * record is invisible, because `head` is stored last.  A lane is never
 * reused: after a death the next connection gets a new one.  Memory files are
 * sealed against shrinking and growing before they are handed over, and the
 * receiver checks seals and size before it maps.
 */

#ifndef CHAN_CHANNEL_H
#define CHAN_CHANNEL_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include <atomic_ops.h>

#ifdef __cplusplus
extern "C" {
#endif


#define CHAN_MAGIC          UINT64_C(0x316e6168636d6c6c)     /* "llmchan1" */
#define CHAN_VERSION        3

#define CHAN_OK             0
#define CHAN_AGAIN          (-1)     /* no record, or no room */
#define CHAN_ERROR          (-2)     /* violation or system error; see text */

#define CHAN_RECORD_MAX     65536    /* bytes of one record, header included */
#define CHAN_RING_MIN       (4 * CHAN_RECORD_MAX)
#define CHAN_RING_MAX       (1u << 30)
#define CHAN_LANE_DEFAULT   (4u << 20)   /* both rings together */

#define CHAN_ERR_LEN        256      /* of each `err`, which may be NULL */


/* The connection's two messages. */

typedef struct {
    uint64_t  magic;
    uint32_t  version;
    uint32_t  pid;
    uint64_t  lane_size;     /* both rings; 0: the engine's default */
} chan_hello_t;

enum {
    CHAN_WELCOME_OK      = 0,
    CHAN_WELCOME_VERSION = 1,    /* magic or version differ */
    CHAN_WELCOME_DENIED  = 2,    /* SO_PEERCRED not allowed */
    CHAN_WELCOME_LIMIT   = 3,    /* too many lanes */
    CHAN_WELCOME_BAD     = 4     /* lane size out of range, no memory */
};

typedef struct {
    uint64_t  magic;
    uint32_t  version;
    uint32_t  status;
    uint64_t  sub_size;
    uint64_t  ev_size;
    uint64_t  board_size;
    char      reason[120];   /* NUL-terminated, for the log */
} chan_welcome_t;


/* The lane. */

typedef struct {
    uint64_t  magic;
    uint32_t  version;
    uint32_t  reserved;
    uint64_t  sub_size;
    uint64_t  ev_size;
} chan_lane_head_t;

typedef struct {
    volatile AO_t  head;                 /* producer's line */
    volatile AO_t  producer_waits;
    char           pad0[64 - 2 * sizeof(AO_t)];
    volatile AO_t  tail;                 /* consumer's line */
    volatile AO_t  consumer_sleeps;
    char           pad1[64 - 2 * sizeof(AO_t)];
} chan_ring_ctl_t;

/* Starts every record. */

typedef struct {
    uint32_t  size;          /* whole record, a multiple of 8 */
    uint16_t  type;          /* CHAN_SUBMIT … in chan_message.h */
    uint16_t  flags;
    uint64_t  id;            /* the request, chosen by the worker, not 0 */
} chan_record_t;


/* One side's private view of a ring. */

typedef struct {
    chan_ring_ctl_t  *ctl;
    uint8_t          *data;
    uint64_t          size;      /* power of two */
    uint64_t          cursor;    /* own: a producer's head, a consumer's tail */
    uint64_t          peer;      /* the other, as last loaded and checked */
    int               bell;      /* eventfd of the peer */
    int               producer;  /* this side's role: 1 or 0 */
} chan_ring_t;

/*
 * One side's view of a lane.  The worker produces into `out` (submissions)
 * and consumes `in` (events); for the engine it is the reverse.
 */

typedef struct {
    int               sock;
    int               lane_fd;   /* the engine closes it after the hand-over */
    int               bell_own;  /* eventfd to sleep on */
    int               bell_peer;
    void             *map;
    size_t            map_size;
    chan_ring_t       in;
    chan_ring_t       out;
} chan_lane_t;


/*
 * Rings (chan_ring.c).
 *
 * chan_ring_write() appends one record made of `n` parts (at most 8), the
 * first of which starts with chan_record_t; it sets record size from the parts,
 * zero-pads to 8 and publishes at once.  CHAN_AGAIN: not enough room, nothing
 * written; CHAN_ERROR: the record is too large or the peer's cursor is off.
 *
 * chan_ring_read() copies the next record into `buf` (`cap` >= CHAN_RECORD_MAX,
 * 8-byte aligned) and consumes it; its header has been checked (size within
 * limits and equal to what was copied, id not 0).
 *
 * chan_ring_room() is the room in bytes as of now (loads the peer's cursor),
 * or CHAN_ERROR as a negative number.
 *
 * chan_ring_notify_data() is a producer's after one or several writes,
 * chan_ring_notify_room() a consumer's after reads: they ring the peer if it
 * sleeps for data, or for room.  No system call otherwise.
 *
 * chan_ring_sleep() is called by a consumer before it waits on its eventfd:
 * 1, it may wait; 0, there is a record, go on; CHAN_ERROR as above.
 * chan_ring_wait_room() is the same for a producer that needs `need` bytes.
 * chan_ring_awake() clears the own flag after waking; a flag left set costs the
 * peer one needless ring, no more.
 */

int chan_ring_write(chan_ring_t *ring, const struct iovec *part, int n,
    char *err);
int chan_ring_read(chan_ring_t *ring, void *buf, size_t cap, char *err);
int64_t chan_ring_room(chan_ring_t *ring, char *err);
void chan_ring_notify_data(chan_ring_t *ring);
void chan_ring_notify_room(chan_ring_t *ring);
int chan_ring_sleep(chan_ring_t *ring, char *err);
int chan_ring_wait_room(chan_ring_t *ring, uint64_t need, char *err);
void chan_ring_awake(chan_ring_t *ring);


/*
 * Lanes (chan_lane.c).
 *
 * chan_lane_create() is the engine's: makes memory file and bells, seals,
 * maps.  `lane_size` 0 is the default; it is split evenly, each half rounded
 * down to a power of two.  chan_lane_open() is the worker's: takes the three
 * descriptors (owned by the lane from then on, also on error), checks seals,
 * size, magic, version and ring sizes against `welcome`, and maps.
 * chan_lane_close() unmaps and closes everything, the socket included; it may
 * be called on a zeroed lane with all descriptors -1 (chan_lane_init()).
 */

void chan_lane_init(chan_lane_t *lane);
int chan_lane_create(chan_lane_t *lane, uint64_t lane_size, char *err);
int chan_lane_open(chan_lane_t *lane, const chan_welcome_t *welcome,
    int lane_fd, int bell_engine, int bell_worker, char *err);
void chan_lane_close(chan_lane_t *lane);

/* Resets an eventfd that woke its owner. */
void chan_bell_drain(int bell);


/*
 * The socket (chan_socket.c).  All descriptors are non-blocking and close on
 * exec.
 *
 * chan_listen(): engine.  Takes PATH.lock (`*lock_fd`), removes a stale socket,
 * binds with `mode` (and group `gid` unless (gid_t) -1), listens.  Returns the
 * listening descriptor or CHAN_ERROR.
 *
 * chan_connect(): worker.  Starts a connection; returns the descriptor, or
 * CHAN_ERROR (no such file, refused; for Unix sockets connect() never stays in
 * progress, EAGAIN means a full backlog and is an error too).
 *
 * chan_send_hello() / chan_recv_hello(), chan_send_welcome() /
 * chan_recv_welcome(): one message each; CHAN_AGAIN when the socket has none
 * yet.  A short, oversized or foreign message is CHAN_ERROR.  A received
 * hello or welcome of another version is CHAN_OK with the fields as they came
 * so that the caller can say which versions met; check them with
 * chan_hello_check() / chan_welcome_check().
 *
 * chan_recv_welcome() stores four descriptors in `fds` when the status is
 * CHAN_WELCOME_OK, and closes whatever does not fit the rule.
 *
 * chan_peer_alive(): CHAN_OK, or CHAN_ERROR when the socket has ended or holds
 * an unexpected byte.
 */

int chan_listen(const char *path, mode_t mode, gid_t gid, int *lock_fd,
    char *err);
int chan_connect(const char *path, char *err);
int chan_send_hello(int sock, uint64_t lane_size, char *err);
int chan_recv_hello(int sock, chan_hello_t *hello, char *err);
int chan_hello_check(const chan_hello_t *hello, char *err);
int chan_send_welcome(int sock, const chan_welcome_t *welcome,
    const int fds[4], char *err);
int chan_recv_welcome(int sock, chan_welcome_t *welcome, int fds[4],
    char *err);
int chan_welcome_check(const chan_welcome_t *welcome, char *err);
int chan_peer_alive(int sock, char *err);


#ifdef __cplusplus
}
#endif

#endif /* CHAN_CHANNEL_H */
