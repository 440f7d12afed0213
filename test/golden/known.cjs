// What a case may hold: a setting or file that nothing here reads would make a replay pass without having tested it, so
// that all others are failures.
const { existsSync, readdirSync } = require('node:fs');
const path = require('node:path');
const { TABLES } = require('./tables.cjs');

const words = (text) => text.split(/\s+/);
const DECODING = words('mask_id block_length gen_length steps temperature');
const FAST_DLLM = [...DECODING, ...words('threshold factor remasking')];

const DREAM = words('mask_token_id max_new_tokens steps eps alg alg_temp temperature top_k top_p');

/** Settings (`args` of case.json) of each kind that is known. */
const SETTINGS = {
  forward: [],
  gguf: [],
  generate: [...DECODING, ...words('factor mode planner_temperature return_sequence_logp use_scheduler')],
  fastdllm: FAST_DLLM,
  fastdllm_prefix: FAST_DLLM,
  fastdllm_dual: FAST_DLLM,
  dparallel: FAST_DLLM,
  d3llm: words(
    'mask_id block_size max_new_tokens temperature threshold remasking block_add_threshold decoded_token_threshold cache_delay_iter refresh_interval early_stop eos_token_id',
  ),
  cached_attention: [],
  dream_forward: [],
  dream_cached: [
    ...DREAM,
    ...words(
      'threshold block_length dual_cache block_size block_add_threshold decoded_token_threshold cache_delay_iter refresh_interval early_stop eos_token_id',
    ),
  ],
  fastdllm2_gen: words(
    'mask_id block_size small_block_size max_new_tokens threshold temperature top_p use_block_cache stop_token',
  ),
  fastdllm2_batch: words(
    'mask_id block_size small_block_size max_new_tokens threshold temperature top_p use_block_cache stop_token tokenizer_pad_token_id',
  ),
  a2d_gen: words('mask_id eos_id pad_id max_new_tokens steps block_size temperature remasking'),
  dream_gen: DREAM,
  dream_gen_threshold: [...DREAM, 'threshold'],
  sdar_forward: words('batch block_length length position_ids use_cache'),
  sdar_forward_cached: words('block_length prefill'),
  fastdllm2_forward: words('mask_id block_size small_block_size'),
  sdar_gen: words(
    'mask_id block_length gen_length max_tokens denoising_steps temperature top_k top_p topk topp threshold confidence_threshold dynamic_threshold eb_threshold remasking_strategy stopping_criteria_idx eos_token_id',
  ),
  lladamoe_forward: words('attention_mask batch length'),
  lladamoe_gen: [...DECODING, 'cfg_scale', 'remasking'],
  llada2_forward: words('batch block_length length'),
  llada2_gen: [...DECODING, ...words('eos_early_stop eos_id threshold top_k top_p')],
  llada21_gen: [
    ...DECODING,
    ...words('editing_threshold eos_early_stop eos_id max_post_steps num_to_transfer threshold'),
  ],
  sft_loss: words('mask_id eps'),
  dparallel_loss: words('mask_id eps mask_probability temperature entropy_weight block_size token_shift region'),
  d3llm_loss: words(
    'mask_id eps temperature entropy_weight block_size max_length variant token_shift use_complementary_loss entropy_on_complement divisor min_mask_ratio max_mask_ratio progress',
  ),
  d3llm_trajectory: words('mask_id steps gen_length block_length temperature remasking threshold'),
  diffugrpo_loss: words('mask_id p_mask_prompt epsilon beta num_iterations iteration cfg_scale group_size'),
  tracerl_loss: words('mask_id pad_id shrink post_num eps beta use_kl_estimator_k3 start_pos'),
  planner_init: words('mask_id factor'),
  grpo_loss: words(
    'mask_id advantage_min_clip beta block_length chunks delta epsilon_high epsilon_low gradient_accumulation_steps max_completion_length rollout_temperature',
  ),
  grad_full: [],
  grad_planner: [],
  adamw: words('betas eps lr_per_step max_grad_norm weight_decay weight_decay_on'),
  tables: [],
  rollout_advantages: words(
    'mask_id block_length eos_token_id max_completion_length num_generations pad_token_id reward_weights temperature',
  ),
};

const FILES = ['case.json', 'inputs.safetensors', 'expected.safetensors', 'grads.safetensors'];

/** The first thing of a case that is not known, in words; null: all is. */
function unknownOf(folder, description, runs) {
  const { kind, args, weight_overrides: overrides } = description;
  if (typeof kind !== 'string' || !Object.hasOwn(runs, kind)) return `kind ${JSON.stringify(kind)} is not known`;
  const own = kind === 'd3llm_loss' ? [...FILES, 'schedule.json'] : FILES;
  const files = kind === 'tables' ? ['case.json', ...TABLES.map((name) => `${name}.json`)] : own;
  const beside = [overrides, kind === 'gguf' ? description.file : undefined];
  const file = readdirSync(folder).find((name) => !files.includes(name) && !beside.includes(name));
  if (file !== undefined) return `kind ${kind}: file ${file} is not known`;
  const setting = Object.keys(args ?? {}).find((name) => !SETTINGS[kind]?.includes(name));
  if (setting !== undefined) return `kind ${kind}: setting ${setting} is not known`;
  return null;
}

/** Whether an entry of the folder of cases is none: notes, facts, and the models. */
const isBeside = (name) => name === 'models' || /^README[\w-]*\.md$|^facts[\w-]*\.json$/.test(name);

/**
 * Names of the cases of a folder, and `problems` of what is neither a case nor known.
 * @returns {{ names: string[], problems: { name: string, detail: string }[] }}
 */
function listCases(root) {
  const names = [];
  const problems = [];
  for (const entry of readdirSync(root, { withFileTypes: true })) {
    const { name } = entry;
    if (isBeside(name)) continue;
    if (existsSync(path.join(root, name, 'case.json'))) names.push(name);
    else if (entry.isDirectory()) problems.push({ name, detail: 'the folder has no case.json' });
    else problems.push({ name, detail: 'the file is not known' });
  }
  return { names: names.sort(), problems };
}

module.exports = { listCases, unknownOf };
