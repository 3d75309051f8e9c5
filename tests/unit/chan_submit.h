/*
 * A submission that nothing is wrong with.
 */

#ifndef CHAN_SUBMIT_H
#define CHAN_SUBMIT_H

#include <string.h>

#include "channel/chan_message.h"


static inline void
submit_init(chan_submit_t *s)
{
    memset(s, 0, sizeof(*s));
    s->endpoint = CHAN_CHAT;
    s->credit = 1000;
    s->max_tokens = 16;
    s->rank_hint = -1;
    s->temperature = 0.7f;
    s->top_p = 1;
    s->repetition_penalty = 1;
}

#endif /* CHAN_SUBMIT_H */
