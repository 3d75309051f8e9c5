/*
 * Routing by prefix beside other ways to choose a rank, in virtual time.
 *
 * A trace of conversations over several ranks: each begins with one of a few
 * system prompts (some are popular, most are not), has several turns with time
 * to think in between, and sends all that was said before with each turn.  A
 * rank works in steps: it takes requests while it has slots and KV blocks, has
 * a budget of prompt tokens a step, and makes one token for each sequence that
 * has its prompt.  Its cache keeps what requests left behind until the blocks
 * are needed; the least recently used go first, ends before beginnings.
 *
 *     random, round robin, least loaded     (in requests, exact)
 *     ours      the module's own code: tags, zone, choice; it sees the board
 *               as the last step left it, and the eviction log.  Where it has
 *               no opinion the engine takes the least loaded rank
 *     oracle    knows every cache: the longest cached prefix among ranks with
 *               at most 1.25 times the mean load
 *
 * Printed are the share of prompt tokens found in caches, and how far ranks
 * are apart: the busiest's share of requests in flight (mean over time) and of
 * tokens computed, each over the mean of all; then the mean time from arrival
 * to the first token.  At last the time that the module's code takes for a
 * prompt of 1 KB in a zone of 100,000 tags; the tree that stands in for
 * nginx's is deeper than that, so it takes no less.
 *
 * With --check: exit status 1 unless ours has at least 95 % of the oracle's
 * hits with both ratios at most 1.25.  Same seed, same figures.
 */

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>

#include "route/route.h"


static void usage(FILE *out);
static int parse_options(int argc, char **argv, int *check);


static const char *const  names[] = { "random", "round robin", "least loaded",
                                      "ours", "oracle" };

route_options_t  opt = {
    .seed = 1, .ranks = 8, .talks = 6000, .systems = 40, .blocks = 3072,
    .budget = 512, .rate = 8, .zone = 10 << 20, .pick = { 0, 4 }
};


int
main(int argc, char **argv)
{
    int       i, check;
    result_t  r[POLICIES];

    check = 0;

    if (parse_options(argc, argv, &check) != 0) {
        return 2;
    }

    trace_make();

    printf("%u ranks, %u conversations, %u system prompts, %u KV blocks a"
           " rank, seed %llu\n\n", opt.ranks, opt.talks, opt.systems,
           opt.blocks, (unsigned long long) opt.seed);
    printf("%-14s %8s %12s %12s %10s\n", "", "hits", "requests", "tokens",
           "ttft");
    printf("%-14s %8s %12s %12s %10s\n", "", "%", "max/mean", "max/mean",
           "ms");

    for (i = 0; i < POLICIES; i++) {
        run_policy(i, &r[i]);
        printf("%-14s %8.2f %12.3f %12.3f %10.0f\n", names[i], r[i].hit * 100,
               r[i].skew, r[i].work, r[i].ttft);
    }

    printf("\nours has %.1f %% of the oracle's hits\n",
           100 * r[OURS].hit / r[ORACLE].hit);

    if (!check) {
        printf("1 KB prompt: %.0f ns to tag, look up, choose and note\n",
               ours_cost());
        return 0;
    }

    return r[OURS].hit >= 0.95 * r[ORACLE].hit && r[OURS].skew <= 1.25
           && r[OURS].work <= 1.25 ? 0 : 1;
}


static void
usage(FILE *out)
{
    fputs("usage: bench_route [options]\n"
          "  --seed N           of the trace (1)\n"
          "  --ranks N          (8)\n"
          "  --talks N          conversations (6000)\n"
          "  --systems N        system prompts (40)\n"
          "  --blocks N         KV blocks of 64 tokens a rank (3072)\n"
          "  --rate N           conversations a second (8)\n"
          "  --budget N         prompt tokens a step (512)\n"
          "  --zone BYTES       size of the zone (10485760)\n"
          "  --min-match N      percent (0)\n"
          "  --max-skew N       requests (4)\n"
          "  --check            fail if ours is worse than promised\n", out);
}


static int
parse_options(int argc, char **argv, int *check)
{
    int  c;

    static const struct option  options[] = {
        { "seed", required_argument, NULL, 's' },
        { "ranks", required_argument, NULL, 'r' },
        { "talks", required_argument, NULL, 't' },
        { "systems", required_argument, NULL, 'S' },
        { "blocks", required_argument, NULL, 'b' },
        { "rate", required_argument, NULL, 'R' },
        { "budget", required_argument, NULL, 'B' },
        { "zone", required_argument, NULL, 'z' },
        { "min-match", required_argument, NULL, 'm' },
        { "max-skew", required_argument, NULL, 'k' },
        { "check", no_argument, NULL, 'c' },
        { "help", no_argument, NULL, 'h' },
        { NULL, 0, NULL, 0 }
    };

    while ((c = getopt_long(argc, argv, "h", options, NULL)) != -1) {
        switch (c) {
        case 's': opt.seed = strtoull(optarg, NULL, 10); break;
        case 'r': opt.ranks = (uint32_t) atoi(optarg); break;
        case 't': opt.talks = (uint32_t) atoi(optarg); break;
        case 'S': opt.systems = (uint32_t) atoi(optarg); break;
        case 'b': opt.blocks = (uint32_t) atoi(optarg); break;
        case 'R': opt.rate = atof(optarg); break;
        case 'B': opt.budget = (uint32_t) atoi(optarg); break;
        case 'z': opt.zone = strtoull(optarg, NULL, 10); break;
        case 'm': opt.pick.min_match = (ngx_uint_t) atoi(optarg); break;
        case 'k': opt.pick.max_skew = (ngx_uint_t) atoi(optarg); break;
        case 'c': *check = 1; break;

        case 'h':
            usage(stdout);
            exit(0);

        default:
            usage(stderr);
            return -1;
        }
    }

    if (opt.ranks == 0 || opt.ranks > CHAN_RANKS_MAX || opt.talks == 0
        || opt.systems == 0 || opt.rate <= 0 || opt.budget == 0
        || opt.blocks < 1024 || optind != argc)
    {
        usage(stderr);
        return -1;
    }

    return 0;
}
