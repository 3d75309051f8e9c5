"""The styles of random checkpoints: config.json and the tensors it implies.

Dimensions are awkward on purpose: no multiples of 16, some odd, groups and
blocks that end ragged. `bench`, `h130` and `full-v2lite` have the sizes of the
measured models instead.
"""

import copy

YARN = {'type': 'yarn', 'factor': 40, 'beta_fast': 32, 'beta_slow': 1,
        'mscale': 1.0, 'mscale_all_dim': 1.0,
        'original_max_position_embeddings': 4096}

COMMON = {
    'architectures': ['DeepseekV3ForCausalLM'],
    'attention_bias': False, 'attention_dropout': 0.0,
    'bos_token_id': 0, 'eos_token_id': 1,
    'first_k_dense_replace': 1, 'hidden_act': 'silu',
    'initializer_range': 0.02, 'max_position_embeddings': 163840,
    'model_type': 'deepseek_v3', 'moe_layer_freq': 1,
    'num_nextn_predict_layers': 0, 'rms_norm_eps': 1e-06,
    'rope_scaling': YARN, 'rope_theta': 10000,
    'tie_word_embeddings': False, 'torch_dtype': 'bfloat16',
    'transformers_version': '4.33.1', 'use_cache': True,
}

V3 = {**COMMON,
      'hidden_size': 182, 'intermediate_size': 306,
      'moe_intermediate_size': 54, 'num_hidden_layers': 4,
      'num_attention_heads': 5, 'num_key_value_heads': 5,
      'q_lora_rank': 74, 'kv_lora_rank': 60, 'qk_nope_head_dim': 22,
      'qk_rope_head_dim': 12, 'v_head_dim': 26,
      'n_routed_experts': 24, 'num_experts_per_tok': 5,
      'n_shared_experts': 1, 'n_group': 4, 'topk_group': 2,
      'scoring_func': 'sigmoid', 'topk_method': 'noaux_tc',
      'norm_topk_prob': True, 'routed_scaling_factor': 2.5,
      'num_nextn_predict_layers': 1, 'vocab_size': 1003}

V2LITE = {**V3,
          'architectures': ['DeepseekV2ForCausalLM'],
          'model_type': 'deepseek_v2', 'aux_loss_alpha': 0.001,
          'seq_aux': True, 'num_nextn_predict_layers': 0,
          'rope_scaling': {**YARN, 'mscale': 0.707, 'mscale_all_dim': 0.707},
          'hidden_size': 173, 'intermediate_size': 291,
          'moe_intermediate_size': 51, 'num_hidden_layers': 3,
          'num_attention_heads': 3, 'num_key_value_heads': 3,
          'q_lora_rank': None, 'kv_lora_rank': 59, 'qk_nope_head_dim': 21,
          'qk_rope_head_dim': 10, 'v_head_dim': 19,
          'n_routed_experts': 22, 'num_experts_per_tok': 6,
          'n_shared_experts': 2, 'n_group': 1, 'topk_group': 1,
          'scoring_func': 'softmax', 'topk_method': 'greedy',
          'norm_topk_prob': False, 'routed_scaling_factor': 1.0,
          'vocab_size': 907}

V2 = {**V2LITE,
      'rope_scaling': {**YARN, 'mscale': 0.707, 'mscale_all_dim': 0.707},
      'hidden_size': 166, 'num_attention_heads': 6, 'num_key_value_heads': 6,
      'q_lora_rank': 70, 'kv_lora_rank': 52, 'qk_nope_head_dim': 18,
      'qk_rope_head_dim': 14, 'v_head_dim': 22,
      'n_routed_experts': 40, 'num_experts_per_tok': 6,
      'n_group': 8, 'topk_group': 3, 'topk_method': 'group_limited_greedy',
      'routed_scaling_factor': 16.0}

MOONLIGHT = {**V3,
             'num_nextn_predict_layers': 0, 'max_position_embeddings': 8192,
             'rms_norm_eps': 1e-05, 'rope_scaling': None,
             'rope_theta': 50000.0, 'q_lora_rank': None,
             'hidden_size': 190, 'num_hidden_layers': 3,
             'n_routed_experts': 26, 'num_experts_per_tok': 6,
             'n_shared_experts': 2, 'n_group': 1, 'topk_group': 1,
             'routed_scaling_factor': 2.446, 'vocab_size': 1111}

K2 = {**V3,
      'model_type': 'kimi_k2', 'num_nextn_predict_layers': 0,
      'rope_scaling': {**YARN, 'factor': 32, 'beta_fast': 1},
      'rope_theta': 50000.0, 'num_attention_heads': 4,
      'num_key_value_heads': 4, 'n_routed_experts': 47,
      'num_experts_per_tok': 8, 'n_group': 1, 'topk_group': 1,
      'routed_scaling_factor': 2.827, 'vocab_size': 1201}

FP8 = {**V3,
       'hidden_size': 202, 'intermediate_size': 306,
       'moe_intermediate_size': 140, 'num_hidden_layers': 3,
       'q_lora_rank': 138, 'kv_lora_rank': 132,
       'n_routed_experts': 16, 'num_experts_per_tok': 4,
       'quantization_config': {
           'activation_scheme': 'dynamic', 'fmt': 'e4m3',
           'quant_method': 'fp8', 'weight_block_size': [128, 128]}}

BENCH = {**V3,
         'hidden_size': 512, 'intermediate_size': 1536,
         'moe_intermediate_size': 128, 'num_hidden_layers': 8,
         'num_attention_heads': 8, 'num_key_value_heads': 8,
         'q_lora_rank': 256, 'kv_lora_rank': 128, 'qk_nope_head_dim': 64,
         'qk_rope_head_dim': 32, 'v_head_dim': 64,
         'n_routed_experts': 64, 'num_experts_per_tok': 6,
         'num_nextn_predict_layers': 0, 'vocab_size': 16384}

H130 = {**BENCH, 'kv_lora_rank': 512, 'qk_nope_head_dim': 128,
        'qk_rope_head_dim': 64, 'v_head_dim': 128}

# As published, 15.7 billion parameters, 31 GB.
FULL_V2LITE = {**V2LITE,
               'hidden_size': 2048, 'intermediate_size': 10944,
               'moe_intermediate_size': 1408, 'num_hidden_layers': 27,
               'num_attention_heads': 16, 'num_key_value_heads': 16,
               'kv_lora_rank': 512, 'qk_nope_head_dim': 128,
               'qk_rope_head_dim': 64, 'v_head_dim': 128,
               'n_routed_experts': 64, 'vocab_size': 102400}

STYLES = {
    'v3': (V3, 'DeepSeek-V3: q_lora, sigmoid, noaux_tc, groups, YaRN, MTP'),
    'v2lite': (V2LITE, 'V2-Lite: no q_lora, softmax, greedy, odd sizes'),
    'v2': (V2, 'V2: group_limited_greedy, scale 16'),
    'moonlight': (MOONLIGHT, 'Moonlight: no YaRN, one group, eps 1e-5'),
    'k2': (K2, 'Kimi K2: one group of many experts, YaRN with one beta'),
    'fp8': (FP8, 'V3 with e4m3 weights, 128 x 128 scales, ragged blocks'),
    'bench': (BENCH, 'the 115M-parameter model of make bench'),
    'full-v2lite': (FULL_V2LITE, "V2-Lite's own sizes: see --quick"),
    'h130': (H130, "the 130M-parameter model with V3's head sizes"),
}


def style(name):
    return copy.deepcopy(STYLES[name][0])


def is_moe(config, layer):
    return layer >= config['first_k_dense_replace'] \
        and layer % config['moe_layer_freq'] == 0


def attention_tensors(config, at):
    heads, hidden = config['num_attention_heads'], config['hidden_size']
    nope, rope = config['qk_nope_head_dim'], config['qk_rope_head_dim']
    latent, value = config['kv_lora_rank'], config['v_head_dim']
    rank = config['q_lora_rank']
    at += 'self_attn.'
    if rank:
        yield at + 'q_a_proj.weight', (rank, hidden)
        yield at + 'q_a_layernorm.weight', (rank,)
        yield at + 'q_b_proj.weight', (heads * (nope + rope), rank)
    else:
        yield at + 'q_proj.weight', (heads * (nope + rope), hidden)
    yield at + 'kv_a_proj_with_mqa.weight', (latent + rope, hidden)
    yield at + 'kv_a_layernorm.weight', (latent,)
    yield at + 'kv_b_proj.weight', (heads * (nope + value), latent)
    yield at + 'o_proj.weight', (hidden, heads * value)


def mlp_tensors(config, at, inner):
    hidden = config['hidden_size']
    yield at + 'gate_proj.weight', (inner, hidden)
    yield at + 'up_proj.weight', (inner, hidden)
    yield at + 'down_proj.weight', (hidden, inner)


def block_tensors(config, layer):
    hidden, at = config['hidden_size'], f'model.layers.{layer}.'
    yield at + 'input_layernorm.weight', (hidden,)
    yield from attention_tensors(config, at)
    yield at + 'post_attention_layernorm.weight', (hidden,)
    at += 'mlp.'
    if not is_moe(config, layer):
        yield from mlp_tensors(config, at, config['intermediate_size'])
        return
    experts, inner = config['n_routed_experts'], \
        config['moe_intermediate_size']
    yield at + 'gate.weight', (experts, hidden)
    if config['topk_method'] == 'noaux_tc':
        yield at + 'gate.e_score_correction_bias', (experts,)
    for expert in range(experts):
        yield from mlp_tensors(config, f'{at}experts.{expert}.', inner)
    if config['n_shared_experts']:
        yield from mlp_tensors(config, at + 'shared_experts.',
                               inner * config['n_shared_experts'])


def model_tensors(config):
    """Yields (name, shape) of every tensor but the FP8 scales."""
    hidden, vocab = config['hidden_size'], config['vocab_size']
    yield 'model.embed_tokens.weight', (vocab, hidden)
    layers = config['num_hidden_layers']
    for layer in range(layers):
        yield from block_tensors(config, layer)
    for layer in range(layers, layers + config['num_nextn_predict_layers']):
        at = f'model.layers.{layer}.'
        yield at + 'embed_tokens.weight', (vocab, hidden)
        yield at + 'enorm.weight', (hidden,)
        yield at + 'hnorm.weight', (hidden,)
        yield at + 'eh_proj.weight', (hidden, 2 * hidden)
        yield from block_tensors(config, layer)
        yield at + 'shared_head.norm.weight', (hidden,)
        yield at + 'shared_head.head.weight', (vocab, hidden)
    yield 'model.norm.weight', (hidden,)
    if not config['tie_word_embeddings']:
        yield 'lm_head.weight', (vocab, hidden)


def parameters(config):
    """Number of weights, MTP layers left out."""
    count, mtp = 0, f'model.layers.{config["num_hidden_layers"]}.'
    for name, shape in model_tensors(config):
        size = 1
        for n in shape:
            size *= n
        count += 0 if name.startswith(mtp) else size
    return count
