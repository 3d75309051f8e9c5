/*
 * Sums, and a table of them by name.
 */

#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "ledger.h"


#define LEDGER_OTHERS  "(others)"


static uint32_t *ledger_names_slot(const ledger_names_t *names,
    const char *name);
static int ledger_names_grow(ledger_names_t *names);
static int ledger_names_compare(const void *one, const void *two);


/*
 * Counts below 2^63 and costs below 10^24 cannot overflow with fewer than
 * 10^14 lines.
 */

void
ledger_sum_add(ledger_sum_t *s, const ledger_usage_t *u)
{
    s->requests++;
    s->failed += u->status >= 400;
    s->unpriced += !u->priced && (u->prompt != 0 || u->completion != 0);
    s->input += u->prompt;
    s->hit += u->cached;
    s->output += u->completion;
    s->reasoning += u->reasoning;
    s->cost += u->cost;
}


int
ledger_sum_price(ledger_sum_t *s, const ledger_price_t *price)
{
    ledger_int_t  hit, miss, output;

    if (price == NULL) {
        s->revenue = s->cost;
        return 0;
    }

    if (__builtin_mul_overflow(s->hit, price->hit, &hit)
        || __builtin_mul_overflow(s->input - s->hit, price->miss, &miss)
        || __builtin_mul_overflow(s->output, price->output, &output)
        || __builtin_add_overflow(hit, miss, &s->revenue)
        || __builtin_add_overflow(s->revenue, output, &s->revenue))
    {
        return -1;
    }

    return 0;
}


ledger_sum_t *
ledger_names_get(ledger_names_t *names, const char *name)
{
    uint32_t      *slot;
    ledger_sum_t  *s;

    slot = NULL;

    if (names->slots != 0) {
        slot = ledger_names_slot(names, name);

        if (*slot == 0 && names->n >= LEDGER_NAMES) {
            name = LEDGER_OTHERS;
            slot = ledger_names_slot(names, name);
        }

        if (*slot != 0) {
            return &names->sum[*slot - 1];
        }
    }

    if (names->n * 2 >= names->slots) {
        if (ledger_names_grow(names) != 0) {
            return NULL;
        }

        slot = ledger_names_slot(names, name);
    }

    s = &names->sum[names->n];
    memset(s, 0, sizeof(ledger_sum_t));

    s->name = strdup(name);
    if (s->name == NULL) {
        return NULL;
    }

    *slot = (uint32_t) ++names->n;

    return s;
}


static uint32_t *
ledger_names_slot(const ledger_names_t *names, const char *name)
{
    size_t  i;

    i = XXH3_64bits(name, strlen(name)) & (names->slots - 1);

    while (names->slot[i] != 0
           && strcmp(names->sum[names->slot[i] - 1].name, name) != 0)
    {
        i = (i + 1) & (names->slots - 1);
    }

    return &names->slot[i];
}


/* At most half of the slots are in use, so there are half as many sums. */

static int
ledger_names_grow(ledger_names_t *names)
{
    size_t         i, slots;
    uint32_t      *slot;
    ledger_sum_t  *sum;

    slots = names->slots != 0 ? names->slots * 2 : 64;

    sum = realloc(names->sum, slots / 2 * sizeof(ledger_sum_t));
    if (sum == NULL) {
        return -1;
    }

    names->sum = sum;

    slot = calloc(slots, sizeof(uint32_t));
    if (slot == NULL) {
        return -1;
    }

    free(names->slot);
    names->slot = slot;
    names->slots = slots;

    for (i = 0; i < names->n; i++) {
        *ledger_names_slot(names, sum[i].name) = (uint32_t) i + 1;
    }

    return 0;
}


void
ledger_names_sort(ledger_names_t *names)
{
    if (names->n > 1) {
        qsort(names->sum, names->n, sizeof(ledger_sum_t),
              ledger_names_compare);
    }
}


static int
ledger_names_compare(const void *one, const void *two)
{
    ledger_int_t         a, b;
    const ledger_sum_t  *x, *y;

    x = one;
    y = two;

    if (x->revenue != y->revenue) {
        return x->revenue < y->revenue ? 1 : -1;
    }

    a = x->input + x->output;
    b = y->input + y->output;

    if (a != b) {
        return a < b ? 1 : -1;
    }

    return strcmp(x->name, y->name);
}


void
ledger_names_free(ledger_names_t *names)
{
    size_t  i;

    for (i = 0; i < names->n; i++) {
        free(names->sum[i].name);
    }

    free(names->sum);
    free(names->slot);
}
