/*
 * The options that commands have in common: what the engine can be told.
 */

#include "cli/cli_common.h"
#include "sched/sched.h"

#include <string.h>
#include <unistd.h>


static const char *const  cli_backends[] = { "cpu", "cuda", NULL };
static const char *const  cli_switch[] = { "off", "on", NULL };
static const char *const  cli_aheads[] = { "auto", "on", "off", NULL };
static const char *const  cli_computes[] = { "auto", "f32", "bf16", NULL };
static const char *const  cli_kv_types[] = { "auto", "fp8", NULL };
static const char *const  cli_loads[] = { "auto", "map", "copy", NULL };
static const char *const  cli_weights[] = {
    "auto", "bf16", "fp8", "int8", "int4", NULL
};
static const char *const  cli_inputs[] = { "auto", "bf16", "fp8", NULL };
static const char *const  cli_levels[] = {
    "error", "warn", "notice", "info", "debug", NULL
};

static uint32_t  cli_backend;


/*
 * A GPU is not busy with a few hundred rows; several get each other's, and room
 * for all of them is taken from the KV cache.
 */

uint32_t
cli_prefill_chunk(const char *backend, uint32_t ranks)
{
    uint32_t  rows;

    rows = (strcmp(backend, "cuda") == 0) ? 2048 / ranks : 0;

    return rows > 256 ? rows : 256;
}


void
cli_engine_defaults(cli_engine_t *opt)
{
    memset(opt, 0, sizeof(*opt));

    cli_backend = 0;
    opt->log_level = CLI_LOG_NOTICE;
    opt->ranks = 1;
    opt->pin = UINT32_MAX;
    opt->max_batch = 32;
    opt->overlap = CLI_OVERLAP;
    opt->balance_interval = 60;
    opt->balance_gain = 5;
    opt->join_timeout = 300;
    opt->node_timeout = 30;
    opt->n_nodes = 1;
    opt->socket = "/run/llm-engine/engine.sock";
    opt->socket_mode = 0600;
    opt->queue = 1024;
    opt->prefix_cache = 1;
    opt->kv_cache_size = UINT64_C(16) << 30;
    opt->max_lanes = 1024;
}


size_t
cli_engine_table(cli_engine_t *opt, const char **config, cli_common_t *common)
{
    const cli_common_t  table[] = {
        { CLI_G_MODEL,
          { "model", "DIR", CLI_STRING, &opt->model,
            "checkpoint: config.json, *.safetensors, tokenizer.json" } },
        { CLI_G_COMPUTE,
          { "backend", "NAME", CLI_WORD, &cli_backend,
            "cpu or cuda (H100, H800, H200)", 0, 0, cli_backends } },
        { CLI_G_COMPUTE,
          { "ranks", "N", CLI_UINT, &opt->ranks,
            "expert-parallel ranks", 1, 64 } },
        { CLI_G_COMPUTE,
          { "threads", "N", CLI_UINT, &opt->threads,
            "threads of each rank (default: cores / ranks)", 1, 1024 } },
        { CLI_G_COMPUTE,
          { "compute", "MODE", CLI_WORD, &opt->compute,
            "f32, bf16 or auto, which takes the faster", 0, 0,
            cli_computes } },
        { CLI_G_COMPUTE,
          { "weights", "TYPE", CLI_WORD, &opt->weights,
            "bf16, fp8, int8, int4 or auto, which takes them as they are",
            0, 0, cli_weights } },
        { CLI_G_COMPUTE,
          { "expert-inputs", "TYPE", CLI_WORD, &opt->expert_inputs,
            "of int4 experts on a GPU: bf16, fp8 or auto, fp8 if the rest is",
            0, 0, cli_inputs } },
        { CLI_G_COMPUTE,
          { "load", "MODE", CLI_WORD, &opt->load,
            "map weights, copy them into huge pages, or auto: copy up to 2G",
            0, 0, cli_loads } },
        { CLI_G_COMPUTE,
          { "pin", "CPU", CLI_UINT, &opt->pin,
            "threads stay on the CPUs from this one on (default: none)", 0,
            1023 } },
        { CLI_G_COMPUTE,
          { "kernels", "PATH", CLI_STRING, &opt->kernels,
            "kernel path (default: the best this processor has)" } },
        { CLI_G_COMPUTE,
          { "absorbed", NULL, CLI_FLAG, &opt->absorbed,
            "attention of prompts over latent rows, as of answers (cuda)" } },
        { CLI_G_COMPUTE,
          { "deterministic", NULL, CLI_FLAG, &opt->deterministic,
            "same answers in any batch on a GPU, too, at its price" } },
        { CLI_G_COMPUTE,
          { "kv-memory", "SIZE", CLI_SIZE, &opt->kv_memory,
            "KV cache of each rank (default: by free memory)", 1 } },
        { CLI_G_COMPUTE,
          { "kv-type", "TYPE", CLI_WORD, &opt->kv_type,
            "of the KV cache: auto, as it computes, or fp8 (cuda)", 0, 0,
            cli_kv_types } },
        { CLI_G_COMPUTE,
          { "max-context", "N", CLI_UINT, &opt->max_context,
            "tokens of a sequence (default: the model's)", 2, 16777216 } },
        { CLI_G_COMPUTE,
          { "max-batch", "N", CLI_UINT, &opt->max_batch,
            "sequences computed at once on each rank", 1, 4096 } },
        { CLI_G_COMPUTE,
          { "prefill-chunk", "N", CLI_UINT, &opt->prefill_chunk,
            "prompt tokens of a step on each rank (default: 256; one GPU: 2048)",
            1, 65536 } },
        { CLI_G_COMPUTE,
          { "ahead", "MODE", CLI_WORD, &opt->ahead,
            "on, off or auto: plan a step while another is computed", 0, 0,
            cli_aheads } },
        { CLI_G_COMPUTE,
          { "overlap", "ROWS", CLI_UINT, &opt->overlap,
            "steps of so many in two micro-batches, 0 none (GPUs, "
            "default: 1024)", 0, 65536 } },
        { CLI_G_COMPUTE,
          { "speculate", "N", CLI_UINT, &opt->speculate,
            "tokens guessed by the MTP layer, up to N where they pay", 0,
            SCHED_DEPTH_MAX } },
        { CLI_G_COMPUTE,
          { "speculate-always", NULL, CLI_FLAG, &opt->speculate_always,
            "guess N tokens whether they pay or not" } },
        { CLI_G_COMPUTE,
          { "redundant-experts", "N", CLI_UINT, &opt->redundant,
            "replicas of busy experts in each layer, over all ranks", 0,
            65536 } },
        { CLI_G_COMPUTE,
          { "balance-interval", "SECONDS", CLI_FLOAT, &opt->balance_interval,
            "how often experts may move to less busy ranks, 0 never", 0,
            86400 } },
        { CLI_G_COMPUTE,
          { "balance-gain", "PERCENT", CLI_FLOAT, &opt->balance_gain,
            "they move if that relieves the busiest rank by as much", 0,
            100 } },
        { CLI_G_NODES,
          { "nodes", "N", CLI_STRING, &opt->nodes,
            "nodes with as many ranks each, on CPUs; auto: Slurm, MPI" } },
        { CLI_G_NODES,
          { "node-rank", "N", CLI_UINT, &opt->node_rank,
            "which of them this is, from 0", 0, 63 } },
        { CLI_G_NODES,
          { "rendezvous", "HOST:PORT", CLI_STRING, &opt->rendezvous,
            "where node 0 listens; :PORT takes Slurm's first host" } },
        { CLI_G_NODES,
          { "join-timeout", "SECONDS", CLI_FLOAT, &opt->join_timeout,
            "for all nodes to come and to load (default: 300)", 1, 86400 } },
        { CLI_G_NODES,
          { "node-timeout", "SECONDS", CLI_FLOAT, &opt->node_timeout,
            "for a node to answer in a step (default: 30)", 0.1, 3600 } },
        { CLI_G_SERVE,
          { "kv-cache-dir", "DIR", CLI_STRING, &opt->kv_cache_dir,
            "directory for cached KV blocks, of this engine alone" } },
        { CLI_G_SERVE,
          { "kv-cache-size", "SIZE", CLI_SIZE, &opt->kv_cache_size,
            "bytes in it at most (default: 16G)", 1 } },
        { CLI_G_SERVE,
          { "model-name", "NAME[,ALIAS]", CLI_STRING, &opt->model_name,
            "names the model is served under (default: directory)" } },
        { CLI_G_SERVE,
          { "socket", "PATH", CLI_STRING, &opt->socket,
            "Unix socket for the nginx workers" } },
        { CLI_G_SERVE,
          { "socket-mode", "MODE", CLI_MODE, &opt->socket_mode,
            "its permissions, octal" } },
        { CLI_G_SERVE,
          { "socket-group", "GROUP", CLI_STRING, &opt->socket_group,
            "its group" } },
        { CLI_G_SERVE,
          { "queue", "N", CLI_UINT, &opt->queue,
            "requests that may wait", 1, 1048576 } },
        { CLI_G_SERVE,
          { "prefix-cache", "MODE", CLI_WORD, &opt->prefix_cache,
            "on or off: keep and share the KV of equal beginnings", 0, 0,
            cli_switch } },
        { CLI_G_SERVE,
          { "max-lanes", "N", CLI_UINT, &opt->max_lanes,
            "workers that may be connected", 1, 4096 } },
        { 0,
          { "log-level", "LEVEL", CLI_WORD, &opt->log_level,
            "error, warn, notice, info or debug", 0, 0, cli_levels } },
        { 0,
          { "config", "FILE", CLI_STRING, config,
            "read options from FILE, one `name value` a line" } }
    };

    _Static_assert(sizeof(table) <= CLI_COMMON_MAX * sizeof(cli_common_t),
                   "CLI_COMMON_MAX is too small");

    memcpy(common, table, sizeof(table));

    return sizeof(table) / sizeof(table[0]);
}


int
cli_engine_check(const cli_command_t *cmd, cli_engine_t *opt)
{
    if ((cmd->groups & CLI_G_MODEL) != 0 && opt->model == NULL) {
        cli_error("%s: --model is required", cmd->name);
        return CLI_EXIT_USAGE;
    }

    if ((cmd->groups & CLI_G_SERVE) != 0 && opt->kv_cache_dir != NULL
        && !opt->prefix_cache)
    {
        cli_error("--kv-cache-dir is of no use with --prefix-cache off");
        return CLI_EXIT_USAGE;
    }

    if (opt->speculate_always && opt->speculate == 0) {
        cli_error("--speculate-always: without --speculate N nothing is "
                  "guessed");
        return CLI_EXIT_USAGE;
    }

    opt->backend = cli_backends[cli_backend];

    if (opt->prefill_chunk == 0) {
        opt->prefill_chunk = cli_prefill_chunk(opt->backend, opt->ranks);
    }

    if (opt->redundant != 0 && opt->ranks == 1 && opt->nodes == NULL) {
        cli_error("--redundant-experts: \"%u\" is for more than one rank, see "
                  "--ranks", opt->redundant);
        return CLI_EXIT_USAGE;
    }

    if (opt->threads == 0) {
        opt->threads = cli_threads(opt->ranks);
    }

    return -1;
}


uint32_t
cli_threads(uint32_t ranks)
{
    long  cores;

    cores = sysconf(_SC_NPROCESSORS_ONLN);

    return cores > (long) ranks ? (uint32_t) cores / ranks : 1;
}


uint32_t
cli_overlap(uint32_t rows, uint32_t ranks, uint32_t max_rows)
{
    return (ranks > 1 && rows <= max_rows) ? rows : 0;
}


/* It takes a core, which CPUs have no spare one of. */

uint32_t
cli_ahead(const cli_engine_t *opt)
{
    if (opt->ahead != CLI_AHEAD_AUTO) {
        return opt->ahead == CLI_AHEAD_ON;
    }

    return strcmp(opt->backend, "cpu") != 0 ? SCHED_AHEAD : 0;
}
