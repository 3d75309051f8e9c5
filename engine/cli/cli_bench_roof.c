/*
 * The roof: how fast the machine could be, measured in the same run.
 *
 * Answers wait for memory: each step reads the active weights once, from a
 * buffer as large as they are, but no smaller than ROOF_READ_MIN, in huge
 * pages.  Several sequences share what they route to the same experts; the
 * roof takes the mean for an even choice.
 *
 * Prompts wait for arithmetic: the operations of each kind over the peak of
 * the instruction that the kernel path multiplies that kind with.  Attention
 * counts with keys and values expanded, the least there is; the engine works
 * on the compressed ones and does more.  Quantised weights are multiplied as
 * numbers of the compute mode, or at its rate, but for those that AVX2 takes as
 * words.
 */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "backend/cpu/be_peak.h"
#include "cli/cli_bench.h"


#define ROOF_READ_MIN   ((size_t) 256 << 20)
#define ROOF_READ_MAX   ((size_t) 2 << 30)
#define ROOF_HUGE_PAGE  ((size_t) 2 << 20)


static int roof_read(bench_roof_t *roof, be_team_t *team, char *err);


int
bench_roof(const bench_t *b, uint32_t threads, bench_roof_t *roof, char *err)
{
    int                 rc;
    be_team_t          *team;
    be_peak_type_t      type;
    const be_peak_t    *matrix, *attend, *router;
    const cli_stack_t  *st;

    st = bench_stack(b);

    team = be_team_open(threads, -1, err);
    if (team == NULL) {
        return -1;
    }

    type = (st->opt.compute == BE_BF16) ? BE_PEAK_BF16 : BE_PEAK_F32;
    attend = be_peak_of(st->path, type);
    matrix = attend;

    if (type == BE_PEAK_BF16 && strcmp(st->path, "avx2") == 0
        && (st->opt.weights == BE_INT8 || st->opt.weights == BE_INT4))
    {
        matrix = be_peak_of(st->path, BE_PEAK_INT16);
    }

    router = be_peak_of(st->path, BE_PEAK_F32);

    roof->threads = threads;
    roof->matrix_name = matrix->name;
    roof->matrix = be_peak_measure(team, matrix);
    roof->attend_name = attend->name;
    roof->attend = (attend == matrix) ? roof->matrix
                                      : be_peak_measure(team, attend);
    roof->router_name = router->name;
    roof->router = be_peak_measure(team, router);

    model_cost(st->model, st->opt.compute, st->opt.weights, &roof->cost);

    rc = roof_read(roof, team, err);

    be_team_close(team);

    return rc;
}


static int
roof_read(bench_roof_t *roof, be_team_t *team, char *err)
{
    void    *data;
    size_t   size;

    size = (size_t) roof->cost.bytes;
    size = (size < ROOF_READ_MIN) ? ROOF_READ_MIN
         : (size > ROOF_READ_MAX) ? ROOF_READ_MAX
         : size / ROOF_HUGE_PAGE * ROOF_HUGE_PAGE;

    data = aligned_alloc(ROOF_HUGE_PAGE, size);
    if (data == NULL) {
        snprintf(err, ERR_LEN, "no memory for %zu bytes to read", size);
        return -1;
    }

    (void) madvise(data, size, MADV_HUGEPAGE);
    memset(data, 1, size);

    roof->read = be_peak_read(team, data, size);
    free(data);

    return 0;
}


double
bench_roof_prompts(const bench_roof_t *roof, uint32_t n_prompt)
{
    double               n, pairs, seconds;
    const model_cost_t  *c;

    c = &roof->cost;
    n = n_prompt;
    pairs = n * (n + 1) / 2;

    seconds = (n * c->matrix + c->head) / roof->matrix
              + n * c->router / roof->router
              + pairs * c->pair / roof->attend;

    return n / seconds;
}


double
bench_roof_answers(const bench_roof_t *roof, const be_gate_t *gate,
    uint32_t n)
{
    double  used, experts, bytes;

    bytes = roof->cost.bytes;

    if (gate->experts != 0 && gate->top_k != 0) {
        experts = gate->experts;
        used = experts * (1 - pow(1 - gate->top_k / experts, n));
        bytes += roof->cost.expert_bytes * (used / gate->top_k - 1);
    }

    return n * roof->read / bytes;
}
