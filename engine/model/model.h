/*
 * A model: configuration, weights, and the forward pass of one step.
 *
 * model_open() reads and checks a Hugging Face directory of the DeepSeek-V2/V3
 * family (config.json, safetensors); the files are mapped and stay mapped.
 * Replace them by renaming: one that is cut short in place raises SIGBUS.
 * model_rank_open() prepares one rank on one backend: its weights (all but the
 * routed experts, which are spread over the ranks), its KV pool, its scratch.
 * model_step() then computes one step.  It knows neither requests nor
 * scheduling nor text.
 */

#ifndef MODEL_MODEL_H
#define MODEL_MODEL_H

#include <stddef.h>
#include <stdint.h>

#include "backend/backend.h"
#include "ep/exchange.h"


typedef struct model_s       model_t;
typedef struct model_rank_s  model_rank_t;

typedef struct {
    char       type[32];             /* "deepseek_v3", … */
    uint32_t   hidden;
    uint32_t   layers;               /* without MTP */
    uint32_t   mtp_layers;
    uint32_t   dense_layers;         /* first_k_dense_replace */
    uint32_t   vocab;
    uint32_t   max_context;          /* max_position_embeddings */
    uint32_t   q_lora;               /* 0: q_proj */
    be_mla_t   mla;
    uint32_t   inter;                /* dense MLP */
    uint32_t   moe_inter;            /* one routed expert */
    uint32_t   shared;               /* shared experts, one MLP together */
    be_gate_t  gate;
    uint32_t   moe_freq;             /* moe_layer_freq */
    float      eps;
    float      theta;
    int        yarn;
    float      yarn_factor;
    float      yarn_beta_fast;
    float      yarn_beta_slow;
    float      yarn_mscale;
    float      yarn_mscale_all_dim;
    uint32_t   yarn_original;        /* original_max_position_embeddings */
    int        fp8;                  /* block-scaled weights */
    int        tied;                 /* the head is the embedding */
    int32_t    bos;
    int32_t    eos[8];               /* config.json, generation_config.json */
    uint32_t   n_eos;
    float      temperature;          /* generation_config.json, or 1 */
    float      top_p;                /* generation_config.json, or 1 */
} model_config_t;

/*
 * What a token costs, all layers together.  Keys and values count as if they
 * were expanded, which is the least work there is.
 */

typedef struct {
    double  matrix;                  /* operations but for the head */
    double  head;                    /* of a row that gives logits */
    double  router;                  /* in float32 */
    double  pair;                    /* attention, of a position it sees */
    double  bytes;                   /* of weights, with the head */
    double  expert_bytes;            /* of them in routed experts */
} model_cost_t;

typedef struct {
    uint32_t  max_rows;              /* of one step on this rank */
    uint32_t  max_logits;            /* rows of logits of one step */
    uint32_t  kv_blocks;             /* of this rank */
    int       mtp;                   /* model_draft() may be called */
} model_rank_options_t;

/*
 * NULL with the reason in `err` (ERR_LEN): file, tensor and what is wrong.
 * Every tensor's presence, dtype, shape and extent is checked here.  A
 * directory that model_convert() wrote is mapped as it is.
 */
model_t *model_open(const char *dir, char *err);
void model_close(model_t *model);

/*
 * Copies what is mapped into memory of huge pages, where the system gives
 * them; before any rank is opened.  0, or -1 with the reason in `err`.
 */
int model_load(model_t *model, char *err);

/* Bytes of its files. */
uint64_t model_size(const model_t *model);

const model_config_t *model_config(const model_t *model);

/*
 * Of config and weights: names, types, shapes, sizes, samples of the bytes.  A
 * converted checkpoint has that of its source.
 */
uint64_t model_fingerprint(const model_t *model);

/* What a converted checkpoint's matrices are; BE_F32: it is not converted. */
be_dtype_t model_packed_as(const model_t *model);

/*
 * Writes a converted checkpoint to the directory `out`, which must not be
 * there yet: weights as `be`, opened with a type of weights, makes them, with
 * config.json and the tokenizer's files of the model.  It appears whole or
 * not at all.  `bytes` is its size.  0, or -1 with the reason in `err`.
 */
int model_convert(model_t *model, be_t *be, const char *out, uint64_t *bytes,
    char *err);

/* Compares the weights of a converted checkpoint with their checksums. */
int model_packed_verify(const model_t *model, char *err);

/* UNIX time of config.json. */
uint64_t model_created(const model_t *model);

/*
 * Bytes of one KV block of all layers in a compute mode on the CPU, of ranks
 * opened with `mtp` or without.
 */
size_t model_kv_block_size(const model_t *model, be_dtype_t compute, int mtp);

/*
 * Of ranks with that compute mode and type of weights (BE_F32: as they are).
 * Operations: a multiplication and an addition are two.
 */
void model_cost(const model_t *model, be_dtype_t compute, be_dtype_t weights,
    model_cost_t *cost);

/*
 * `be`, `ex` and `map` are the caller's and outlive the rank.  Ranks may be
 * opened in parallel.  NULL with the reason in `err` (ERR_LEN).
 */
model_rank_t *model_rank_open(model_t *model, be_t *be, ep_exchange_t *ex,
    const ep_map_t *map, const model_rank_options_t *opt, char *err);
void model_rank_close(model_rank_t *mr);

/* The rank's KV pool, for copying blocks. */
be_kv_t *model_rank_kv(model_rank_t *mr);

/*
 * One step: computes the rows of `batch` (of a sequence in order of position,
 * all of them after what its blocks already hold), stores their KV, and
 * writes float32 logits [n_logits][vocab] of the rows `logit_row` (indices
 * into the batch, ascending) to host memory.  Collective over the ranks: each
 * calls it once per step, with n_rows 0 if it has nothing.  0, or -1 with the
 * reason in `err` when the exchange failed or a row is not possible; then all
 * ranks fail.
 */
int model_step(model_rank_t *mr, const be_batch_t *batch,
    const uint32_t *logit_row, uint32_t n_logits, float *logits, char *err);

/*
 * The rows of logits of the next step or draft are drawn from where they are,
 * if the backend can do that: draw [n_logits], `known` [vocab] stays the same
 * one.  id[i] is the token, -1 if none can be drawn, or as it was: then the
 * host draws, and all rows are in `logits`, which are nowhere else.  0, or -1
 * with the reason in `err`.
 */
int model_draws(model_rank_t *mr, const be_draw_t *draw,
    const uint8_t *known, int32_t *id, char *err);

/*
 * Whether the steps that follow keep what model_draft() works on; all ranks
 * alike.  That costs the last layer of rows without logits.  As opened: `mtp`.
 */
void model_keep(model_rank_t *mr, int keep);

/*
 * The multi-token prediction layer: from the hidden state at a position and
 * the token that follows, logits of the one after that.  A row of `batch` is
 * that token at its own position, which must be above 0, and `from` says where
 * the state of the position before it is: in pass 0 the row of the last step,
 * in pass n the index of the row of logits of pass n - 1, so that each pass
 * drafts one token more.  Its KV is the layer's own, in the same blocks;
 * `batch->first` says since which position a sequence has it.  Logits as in
 * model_step(), and collective like that.  0, or -1 with the reason in `err`.
 */
int model_draft(model_rank_t *mr, const be_batch_t *batch,
    const uint32_t *from, uint32_t pass, const uint32_t *logit_row,
    uint32_t n_logits, float *logits, char *err);

/*
 * Adds this rank's rows that each expert of a MoE layer got since the start,
 * wherever it lives, to load[experts].  Any thread may ask.
 */
void model_expert_load(const model_rank_t *mr, uint32_t layer,
    uint64_t *load);

#endif /* MODEL_MODEL_H */
