/*
 * Submissions: a body, the same for a number in every run, and its records.
 */

#include <stdlib.h>
#include <string.h>

#include "client.h"


static void section(chan_body_t *b, uint32_t kind, const void *fixed,
    size_t fixed_size, const void *data, size_t size);
static void build(chan_body_t *b, long number);


void
submit(long number)
{
    size_t         n, off;
    request_t     *r;
    chan_body_t    b;
    struct iovec   part[2];

    struct {
        chan_record_t  rec;
        chan_submit_t  s;
    } head;

    struct {
        chan_record_t  rec;
        chan_more_t    m;
    } more;

    memset(&b, 0, sizeof(b));
    build(&b, number);

    r = &client.request[number];
    r->id = (uint64_t) number + 1;
    r->submitted = now();

    memset(&head, 0, sizeof(head));
    head.rec.type = CHAN_SUBMIT;
    head.rec.id = r->id;
    head.s = opt.submit;
    head.s.body_size = b.size;

    /* Seeded runs: another seed for each, the same in every run. */
    if (opt.total > 0) {
        head.s.seed += (uint64_t) number;
    }

    n = b.size < 32768 ? b.size : 32768;

    part[0].iov_base = &head;
    part[0].iov_len = sizeof(head);
    part[1].iov_base = b.data;
    part[1].iov_len = n;
    lane_put(part, 2);

    for (off = n; off < b.size; off += n) {
        n = b.size - off < 32768 ? b.size - off : 32768;

        memset(&more, 0, sizeof(more));
        more.rec.type = CHAN_SUBMIT_MORE;
        more.rec.id = r->id;
        more.m.offset = off;
        part[0].iov_base = &more;
        part[0].iov_len = sizeof(more);
        part[1].iov_base = b.data + off;
        part[1].iov_len = n;
        lane_put(part, 2);
    }

    chan_body_free(&b);
    client.begun++;
}


void
submit_control(request_t *r, uint16_t type, const void *data, size_t size)
{
    struct iovec   part[2];
    chan_record_t  rec;

    memset(&rec, 0, sizeof(rec));
    rec.type = type;
    rec.id = r->id;
    part[0].iov_base = &rec;
    part[0].iov_len = sizeof(rec);
    part[1].iov_base = (void *) data;
    part[1].iov_len = size;
    lane_put(part, size > 0 ? 2 : 1);
}


static void
build(chan_body_t *b, long number)
{
    int              i;
    long             n;
    char            *end;
    int32_t         *id;
    const char      *p;
    chan_message_t   m;

    memset(&m, 0, sizeof(m));

    if (opt.chat != NULL) {

        if (opt.system != NULL) {
            m.role = CHAN_ROLE_SYSTEM;
            section(b, CHAN_SEC_MESSAGE, &m, sizeof(m), opt.system,
                    strlen(opt.system));
        }

        m.role = CHAN_ROLE_USER;
        section(b, CHAN_SEC_MESSAGE, &m, sizeof(m), opt.chat,
                strlen(opt.chat));

    } else if (opt.prompt != NULL) {
        section(b, CHAN_SEC_TEXT, NULL, 0, opt.prompt, strlen(opt.prompt));

    } else {
        n = opt.prompt_tokens;

        if (opt.ids != NULL) {
            n = (long) strlen(opt.ids);

        } else if (opt.vary) {
            n = 1 + (long) (mix((uint64_t) number * 2) % (uint64_t) n);
        }

        id = calloc((size_t) n, sizeof(int32_t));
        if (id == NULL) {
            die("prompt", "no memory");
        }

        if (opt.ids != NULL) {
            for (n = 0, p = opt.ids; *p != '\0'; p = end + (*end == ',')) {
                id[n++] = (int32_t) strtol(p, &end, 10);
            }

        } else {
            for (i = 0; i < n; i++) {
                id[i] = (int32_t) (mix(((uint64_t) number << 20)
                                       + (uint64_t) i)
                                   % client.model.vocab_size);
            }
        }

        section(b, CHAN_SEC_IDS, NULL, 0, id, (size_t) n * sizeof(int32_t));
        free(id);
    }

    for (i = 0; i < opt.n_stops; i++) {
        section(b, CHAN_SEC_STOP, NULL, 0, opt.stop[i], strlen(opt.stop[i]));
    }
}


static void
section(chan_body_t *b, uint32_t kind, const void *fixed, size_t fixed_size,
    const void *data, size_t size)
{
    if (chan_body_put(b, kind, fixed, fixed_size, data, size) != CHAN_OK) {
        die("body", "too large");
    }
}


uint64_t
mix(uint64_t z)
{
    z += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);

    return z ^ (z >> 31);
}
