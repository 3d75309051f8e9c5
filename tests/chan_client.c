/*
 * A worker's side of the channel without nginx: submits to an engine and
 * prints what comes back.
 *
 * With a prompt (--prompt, --chat or --ids) it prints the events of one
 * request, or with --text its text alone.  With --total N it submits N
 * requests with pseudo-random prompts, --concurrent at a time, prints with
 * --dump one line each (number, reason, ids, a hash of all log-probabilities,
 * text; in order, so that two runs can be compared) and always tokens per
 * second, time to first token and between tokens.
 *
 * Exit status: 0; 1 if a request ended with ERROR; 2 if the engine did.
 */

#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "client/client.h"


static void parse(int argc, char **argv);


client_options_t  opt;
client_state_t    client;


enum {
    O_SOCKET = 1, O_PROMPT, O_CHAT, O_SYSTEM, O_IDS, O_STOP, O_TEXT, O_DUMP,
    O_STALL, O_CANCEL, O_TOTAL, O_CONCURRENT, O_TOKENS, O_VARY, O_TIMEOUT,
    O_MAX, O_TEMP, O_TOP_P, O_TOP_K, O_MIN_P, O_REP, O_PRES, O_FREQ, O_SEED,
    O_LOGPROBS, O_ECHO, O_IGNORE, O_CREDIT, O_PRIO, O_THINK, O_NO_THINK,
    O_QUEUE, O_QUEUE_MS, O_DEADLINE
};

static const struct option  options[] = {
    { "socket", 1, NULL, O_SOCKET }, { "prompt", 1, NULL, O_PROMPT },
    { "chat", 1, NULL, O_CHAT }, { "system", 1, NULL, O_SYSTEM },
    { "ids", 1, NULL, O_IDS }, { "stop", 1, NULL, O_STOP },
    { "text", 0, NULL, O_TEXT }, { "dump", 0, NULL, O_DUMP },
    { "stall", 0, NULL, O_STALL }, { "cancel-after", 1, NULL, O_CANCEL },
    { "total", 1, NULL, O_TOTAL }, { "concurrent", 1, NULL, O_CONCURRENT },
    { "prompt-tokens", 1, NULL, O_TOKENS }, { "vary", 0, NULL, O_VARY },
    { "timeout", 1, NULL, O_TIMEOUT }, { "max-tokens", 1, NULL, O_MAX },
    { "temperature", 1, NULL, O_TEMP }, { "top-p", 1, NULL, O_TOP_P },
    { "top-k", 1, NULL, O_TOP_K }, { "min-p", 1, NULL, O_MIN_P },
    { "repetition-penalty", 1, NULL, O_REP },
    { "presence-penalty", 1, NULL, O_PRES },
    { "frequency-penalty", 1, NULL, O_FREQ }, { "seed", 1, NULL, O_SEED },
    { "logprobs", 1, NULL, O_LOGPROBS }, { "echo", 0, NULL, O_ECHO },
    { "ignore-eos", 0, NULL, O_IGNORE }, { "credit", 1, NULL, O_CREDIT },
    { "priority", 1, NULL, O_PRIO }, { "think", 0, NULL, O_THINK },
    { "no-think", 0, NULL, O_NO_THINK }, { "queue", 1, NULL, O_QUEUE },
    { "queue-timeout", 1, NULL, O_QUEUE_MS },
    { "deadline", 1, NULL, O_DEADLINE }, { NULL, 0, NULL, 0 }
};


int
main(int argc, char **argv)
{
    long    i, n;
    double  t;

    parse(argc, argv);

    n = opt.total > 0 ? opt.total : 1;
    client.request = calloc((size_t) n, sizeof(request_t));

    if (client.request == NULL) {
        die("start", "no memory");
    }

    figures_open((size_t) n);

    lane_dial();

    t = now();
    lane_loop();
    t = now() - t;

    for (i = 0; opt.dump && i < n; i++) {
        printf("%ld %u [%s] %016" PRIx64 " ", i, client.request[i].reason,
               client.request[i].ids != NULL ? client.request[i].ids : "",
               client.request[i].logprobs);
        print_text(client.request[i].text != NULL ? client.request[i].text : "",
                   client.request[i].text_len);
        putchar('\n');
    }

    if (opt.total > 0) {
        figures_print(t);
    }

    for (i = 0; i < n; i++) {
        free(client.request[i].text);
        free(client.request[i].ids);
    }

    lane_close();
    figures_close();
    free(client.request);

    return client.failed;
}


static void
parse(int argc, char **argv)
{
    int             c;
    chan_submit_t  *s;

    s = &opt.submit;
    opt.concurrent = 1;
    opt.prompt_tokens = 32;
    opt.timeout = 60;
    s->credit = 1 << 20;
    s->max_tokens = 64;
    s->rank_hint = -1;
    s->top_p = 1;
    s->repetition_penalty = 1;

    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (c) {
        case O_SOCKET:     opt.socket = optarg; break;
        case O_PROMPT:     opt.prompt = optarg; break;
        case O_CHAT:       opt.chat = optarg; break;
        case O_SYSTEM:     opt.system = optarg; break;
        case O_IDS:        opt.ids = optarg; break;
        case O_TEXT:       opt.text = 1; break;
        case O_DUMP:       opt.dump = 1; break;
        case O_STALL:      opt.stall = 1; break;
        case O_CANCEL:     opt.cancel_after = atol(optarg); break;
        case O_TOTAL:      opt.total = atol(optarg); break;
        case O_CONCURRENT: opt.concurrent = atol(optarg); break;
        case O_TOKENS:     opt.prompt_tokens = atol(optarg); break;
        case O_VARY:       opt.vary = 1; break;
        case O_TIMEOUT:    opt.timeout = atoi(optarg); break;
        case O_MAX:        s->max_tokens = (uint32_t) atol(optarg); break;
        case O_TEMP:       s->temperature = (float) atof(optarg); break;
        case O_TOP_P:      s->top_p = (float) atof(optarg); break;
        case O_TOP_K:      s->top_k = (uint32_t) atol(optarg); break;
        case O_MIN_P:      s->min_p = (float) atof(optarg); break;
        case O_REP:        s->repetition_penalty = (float) atof(optarg); break;
        case O_PRES:       s->presence_penalty = (float) atof(optarg); break;
        case O_FREQ:       s->frequency_penalty = (float) atof(optarg); break;
        case O_PRIO:       s->priority = atoi(optarg); break;
        case O_CREDIT:     s->credit = strtoull(optarg, NULL, 10); break;
        case O_ECHO:       s->flags |= CHAN_F_ECHO; break;
        case O_IGNORE:     s->flags |= CHAN_F_IGNORE_EOS; break;
        case O_THINK:      s->flags |= CHAN_F_THINK; break;
        case O_NO_THINK:   s->flags |= CHAN_F_NO_THINK; break;
        case O_QUEUE:      s->queue_max = (uint32_t) atol(optarg); break;
        case O_QUEUE_MS:   s->queue_timeout = (uint32_t) atol(optarg); break;
        case O_DEADLINE:   s->deadline = (uint32_t) atol(optarg); break;

        case O_SEED:
            s->seed = strtoull(optarg, NULL, 10);
            s->flags |= CHAN_F_SEED;
            break;

        case O_LOGPROBS:
            s->top_logprobs = (uint32_t) atol(optarg);
            s->flags |= CHAN_F_LOGPROBS;
            break;

        case O_STOP:
            if (opt.n_stops < CHAN_STOP_MAX) {
                opt.stop[opt.n_stops++] = optarg;
            }
            break;

        default:
            exit(2);
        }
    }

    if (opt.socket == NULL
        || (opt.prompt == NULL && opt.chat == NULL && opt.ids == NULL
            && opt.total == 0))
    {
        fputs("usage: chan_client --socket PATH (--prompt TEXT | --chat TEXT "
              "| --ids N,N | --total N) [OPTION]...\n", stderr);
        exit(2);
    }

    s->endpoint = opt.chat != NULL ? CHAN_CHAT : CHAN_COMPLETION;
}


void
die(const char *what, const char *err)
{
    fprintf(stderr, "chan_client: %s: %s\n", what, err);
    exit(2);
}


double
now(void)
{
    struct timespec  ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);

    return (double) ts.tv_sec + (double) ts.tv_nsec / 1e9;
}
