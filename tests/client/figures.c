/*
 * Times to first tokens and between tokens.
 */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "client.h"


static int by_value(const void *a, const void *b);
static double quantile(double *v, size_t n, double q);


static double  *first, *between;
static size_t   n_first, n_between, cap_between;


void
figures_open(size_t n)
{
    first = calloc(n, sizeof(double));
    if (first == NULL) {
        die("figures", "no memory");
    }
}


void
figures_close(void)
{
    free(first);
    free(between);
}


void
figures_first(double t)
{
    first[n_first++] = t;
}


void
figures_between(double t)
{
    if (n_between == cap_between) {
        cap_between = cap_between > 0 ? 2 * cap_between : 4096;
        between = realloc(between, cap_between * sizeof(double));
        if (between == NULL) {
            die("figures", "no memory");
        }
    }

    between[n_between++] = t;
}


void
figures_print(double seconds)
{
    fprintf(opt.dump ? stderr : stdout,
            "%ld requests, %ld at a time: %" PRIu64 " prompt and %" PRIu64
            " new tokens in %.3f s, %.1f new tokens/s; first token p50 %.2f "
            "ms p99 %.2f ms; between tokens p50 %.3f ms p99 %.3f ms\n",
            opt.total, opt.concurrent, client.prompt_tokens, client.tokens,
            seconds, (double) client.tokens / seconds,
            1e3 * quantile(first, n_first, 0.5),
            1e3 * quantile(first, n_first, 0.99),
            1e3 * quantile(between, n_between, 0.5),
            1e3 * quantile(between, n_between, 0.99));
}


static double
quantile(double *v, size_t n, double q)
{
    if (n == 0) {
        return 0;
    }

    qsort(v, n, sizeof(double), by_value);

    return v[(size_t) (q * (double) (n - 1) + 0.5)];
}


static int
by_value(const void *a, const void *b)
{
    double  x = *(const double *) a, y = *(const double *) b;

    return x < y ? -1 : x > y;
}
