/*
 * Lanes: the memory and the doorbells between one worker and the engine.
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE  1
#endif

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "chan_int.h"


#define CHAN_LANE_SEALS  (F_SEAL_SHRINK|F_SEAL_GROW|F_SEAL_SEAL)


static int chan_lane_sealed(int fd, const chan_welcome_t *welcome,
    char *err);
static int chan_lane_map(chan_lane_t *lane, uint64_t sub_size,
    uint64_t ev_size, char *err);
static void chan_lane_rings(chan_lane_t *lane, chan_ring_t *sub,
    uint64_t sub_size, chan_ring_t *ev, uint64_t ev_size);
static int chan_ring_size_ok(uint64_t size);
static int chan_bell_check(int bell, char *err);
static void chan_close(int *fd);


void
chan_lane_init(chan_lane_t *lane)
{
    memset(lane, 0, sizeof(*lane));

    lane->sock = -1;
    lane->lane_fd = -1;
    lane->bell_own = -1;
    lane->bell_peer = -1;
    lane->in.bell = -1;
    lane->out.bell = -1;
}


int
chan_lane_create(chan_lane_t *lane, uint64_t lane_size, char *err)
{
    uint64_t           half;
    chan_lane_head_t  *head;

    chan_lane_init(lane);

    if (lane_size == 0) {
        lane_size = CHAN_LANE_DEFAULT;
    }

    if (lane_size / 2 < CHAN_RING_MIN || lane_size / 2 > CHAN_RING_MAX) {
        return chan_fail(err, "lane size %llu is not between %llu and %llu",
                         (unsigned long long) lane_size,
                         2ULL * CHAN_RING_MIN, 2ULL * CHAN_RING_MAX);
    }

    half = CHAN_RING_MAX;

    while (half > lane_size / 2) {
        half /= 2;
    }

    lane->lane_fd = memfd_create("llm-lane", MFD_CLOEXEC|MFD_ALLOW_SEALING);

    if (lane->lane_fd == -1) {
        (void) chan_fail(err, "memfd_create() failed: %m");
        goto failed;
    }

    /*
     * Pages are allocated now: without memory this is an error here, later it
     * would be a fatal signal in whoever touches a page first.
     */

    if (fallocate(lane->lane_fd, 0, 0, (off_t) (CHAN_LANE_DATA + 2 * half))
        == -1)
    {
        (void) chan_fail(err, "no memory for a lane of %llu bytes: %m",
                         (unsigned long long) (2 * half));
        goto failed;
    }

    if (fcntl(lane->lane_fd, F_ADD_SEALS, CHAN_LANE_SEALS) == -1) {
        (void) chan_fail(err, "sealing a lane failed: %m");
        goto failed;
    }

    lane->bell_own = eventfd(0, EFD_NONBLOCK|EFD_CLOEXEC);
    lane->bell_peer = eventfd(0, EFD_NONBLOCK|EFD_CLOEXEC);

    if (lane->bell_own == -1 || lane->bell_peer == -1) {
        (void) chan_fail(err, "eventfd() failed: %m");
        goto failed;
    }

    if (chan_lane_map(lane, half, half, err) != CHAN_OK) {
        goto failed;
    }

    head = lane->map;
    head->magic = CHAN_MAGIC;
    head->version = CHAN_VERSION;
    head->sub_size = half;
    head->ev_size = half;

    chan_lane_rings(lane, &lane->in, half, &lane->out, half);

    return CHAN_OK;

failed:

    chan_lane_close(lane);

    return CHAN_ERROR;
}


int
chan_lane_open(chan_lane_t *lane, const chan_welcome_t *welcome, int lane_fd,
    int bell_engine, int bell_worker, char *err)
{
    chan_lane_head_t  head;

    chan_lane_init(lane);

    lane->lane_fd = lane_fd;
    lane->bell_own = bell_worker;
    lane->bell_peer = bell_engine;

    if (chan_ring_size_ok(welcome->sub_size) == 0
        || chan_ring_size_ok(welcome->ev_size) == 0)
    {
        (void) chan_fail(err, "ring sizes %llu and %llu are out of range",
                         (unsigned long long) welcome->sub_size,
                         (unsigned long long) welcome->ev_size);
        goto failed;
    }

    if (chan_lane_sealed(lane_fd, welcome, err) != CHAN_OK) {
        goto failed;
    }

    if (chan_bell_check(bell_engine, err) != CHAN_OK
        || chan_bell_check(bell_worker, err) != CHAN_OK)
    {
        goto failed;
    }

    if (chan_lane_map(lane, welcome->sub_size, welcome->ev_size, err)
        != CHAN_OK)
    {
        goto failed;
    }

    chan_close(&lane->lane_fd);

    memcpy(&head, lane->map, sizeof(head));

    if (head.magic != CHAN_MAGIC || head.version != CHAN_VERSION) {
        (void) chan_fail(err, "lane has version %u, this side %u",
                         head.version, CHAN_VERSION);
        goto failed;
    }

    if (head.sub_size != welcome->sub_size
        || head.ev_size != welcome->ev_size)
    {
        (void) chan_fail(err, "lane's ring sizes differ from the welcome's");
        goto failed;
    }

    chan_lane_rings(lane, &lane->out, welcome->sub_size,
                    &lane->in, welcome->ev_size);

    return CHAN_OK;

failed:

    chan_lane_close(lane);

    return CHAN_ERROR;
}


/* A memory file is safe to map only where nobody can make it shorter. */

static int
chan_lane_sealed(int fd, const chan_welcome_t *welcome, char *err)
{
    int          seals;
    uint64_t     size;
    struct stat  st;

    seals = fcntl(fd, F_GET_SEALS);

    if (seals == -1) {
        return chan_fail(err, "lane is not a memory file: %m");
    }

    if ((seals & CHAN_LANE_SEALS) != CHAN_LANE_SEALS) {
        return chan_fail(err, "lane is not sealed against resizing "
                         "(seals 0x%x)", (unsigned) seals);
    }

    if (fstat(fd, &st) == -1) {
        return chan_fail(err, "fstat() of a lane failed: %m");
    }

    size = CHAN_LANE_DATA + welcome->sub_size + welcome->ev_size;

    if ((uint64_t) st.st_size != size) {
        return chan_fail(err, "lane has %llu bytes instead of %llu",
                         (unsigned long long) st.st_size,
                         (unsigned long long) size);
    }

    return CHAN_OK;
}


void
chan_lane_close(chan_lane_t *lane)
{
    if (lane->map != NULL) {
        (void) munmap(lane->map, lane->map_size);
    }

    chan_close(&lane->sock);
    chan_close(&lane->lane_fd);
    chan_close(&lane->bell_own);
    chan_close(&lane->bell_peer);

    chan_lane_init(lane);
}


void
chan_bell_drain(int bell)
{
    ssize_t       n;
    uint64_t      count;
    struct iovec  iov;

    iov.iov_base = &count;
    iov.iov_len = sizeof(count);

    /*
     * Never blocks, even if the peer reads the bell first and has made the
     * shared description blocking; kernels before 5.8 know only read().
     */

    n = preadv2(bell, &iov, 1, -1, RWF_NOWAIT);

    if (n == -1 && (errno == EOPNOTSUPP || errno == ENOSYS)) {
        n = read(bell, &count, sizeof(count));
    }

    (void) n;
}


static int
chan_lane_map(chan_lane_t *lane, uint64_t sub_size, uint64_t ev_size,
    char *err)
{
    void    *p;
    size_t   size;

    size = CHAN_LANE_DATA + sub_size + ev_size;

    p = mmap(NULL, size, PROT_READ|PROT_WRITE, MAP_SHARED, lane->lane_fd, 0);

    if (p == MAP_FAILED) {
        return chan_fail(err, "mapping a lane of %zu bytes failed: %m", size);
    }

    lane->map = p;
    lane->map_size = size;

    return CHAN_OK;
}


static void
chan_lane_rings(chan_lane_t *lane, chan_ring_t *sub, uint64_t sub_size,
    chan_ring_t *ev, uint64_t ev_size)
{
    uint8_t  *p;

    p = lane->map;

    sub->ctl = (chan_ring_ctl_t *) (p + CHAN_LANE_CTL_SUB);
    sub->data = p + CHAN_LANE_DATA;
    sub->size = sub_size;

    ev->ctl = (chan_ring_ctl_t *) (p + CHAN_LANE_CTL_EV);
    ev->data = p + CHAN_LANE_DATA + sub_size;
    ev->size = ev_size;

    lane->in.bell = lane->bell_peer;
    lane->out.bell = lane->bell_peer;
    lane->out.producer = 1;
}


static int
chan_ring_size_ok(uint64_t size)
{
    return size >= CHAN_RING_MIN && size <= CHAN_RING_MAX
           && (size & (size - 1)) == 0;
}


/*
 * An eventfd has no file type.  Anything else could block or raise a signal
 * when it is written to.
 */

static int
chan_bell_check(int bell, char *err)
{
    int          flags;
    struct stat  st;

    flags = fcntl(bell, F_GETFL);

    if (flags == -1 || fstat(bell, &st) == -1) {
        return chan_fail(err, "doorbell is no descriptor: %m");
    }

    if ((st.st_mode & S_IFMT) != 0) {
        return chan_fail(err, "doorbell is not an eventfd");
    }

    if ((flags & O_NONBLOCK) == 0) {
        return chan_fail(err, "doorbell is a blocking descriptor");
    }

    return CHAN_OK;
}


static void
chan_close(int *fd)
{
    if (*fd != -1) {
        (void) close(*fd);
        *fd = -1;
    }
}
