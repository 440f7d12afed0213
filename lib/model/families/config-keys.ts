// Keys of config.json that all families share, and what becomes of keys that no table has.
import { checkKeyTable, type KeyTable, refuseUnknown } from '../../files/key-table';
import { GENERATION_KEYS } from '../generation-file';

/** Bookkeeping of transformers and of tools around it, and settings of training, of speed and of outputs. */
export const HARMLESS: readonly (string | RegExp)[] = [
  ...GENERATION_KEYS,
  'model_type',
  'architectures',
  'auto_map',
  'custom_pipelines',
  'transformers_version',
  'transformers.js_config',
  'torch_dtype',
  'dtype',
  '_name_or_path',
  'name_or_path',
  '_commit_hash',
  '_experts_implementation',
  'use_cache',
  'return_dict',
  'use_return_dict',
  'output_hidden_states',
  'output_attentions',
  '_output_attentions',
  'output_router_logits',
  'logits_to_keep',
  'num_logits_to_keep',
  'torchscript',
  'use_bfloat16',
  'tf_legacy_loss',
  'gradient_checkpointing',
  'gradient_checkpointing_kwargs',
  // Splits products without changing their sums.
  'chunk_size_feed_forward',
  'pretraining_tp',
  'is_decoder',
  'finetuning_task',
  'task_specific_params',
  'problem_type',
  'id2label',
  'label2id',
  'num_labels',
  'tokenizer_class',
  'prefix',
  'precision',
  // Ids of tokens: those that matter are read.
  /_token_id$/,
  /(^|_)(dropout|pdrop|layerdrop)(_|$)/,
  /^(init|initializer|initialization)_/,
  // The same attention, computed in another way.
  /flash_att|(^|_)sdpa(_|$)|^_?attn_implementation/,
  /^unsloth_/,
];

/** Settings of other architectures under names that several of them use. */
export const ACCEPTED: Readonly<Record<string, readonly unknown[]>> = {
  quantization_config: [],
  text_config: [],
  is_encoder_decoder: [false],
  add_cross_attention: [false],
  use_sliding_window: [false],
  partial_rotary_factor: [1],
  rotary_pct: [1],
  rope_interleaved: [false],
  use_rope: [true],
  use_rms_norm: [true],
  pre_norm: [true],
  no_bias: [true],
  scale_attn_weights: [true],
  position_embedding_type: ['rope', 'rotary'],
};

/** Parts of names that settings of an architecture have. */
const STEMS = new RegExp(
  [
    '(^|_)(rope|rota)|theta|position|norm|eps$|attn|attention|causal|bidirectional|alibi|window|softcap|logit',
    'bias|layer|block|head|hidden|embed|residual|activation|interleav|multiplier|scal(e|ing)|mask|encoder',
    'quant|compress|spars|prun|gptq|awq|fp8|int[48]|[48]bit|expert|moe|router|mixture|mamba|recurr|vision|audio|adapter',
    '(^|_)(type|dtype|method|fn|mode|kind|variant|scheme)$',
  ].join('|'),
);
const WORDS = new Set(
  (
    'act tie tied tying epsilon kv qk qkv query cap clip gate gated gating glu swiglu geglu conv ssm rnn lora dim emb ' +
    'embd inner width depth parallel shift pool pooling chunk mup mlp ffn ff factor sink ln bits nbits bd nonlinearity architecture arch'
  ).split(' '),
);
/** Parts of names that notes about a training, a release or a tool have. */
const NOTES = new Set(
  (
    'note notes comment comments description license tag tags author authors url commit version date created updated ' +
    'timestamp hours run runs wandb seed train training trained trainer finetune finetuned finetuning tuned tuning ' +
    'epoch epochs step steps batch lr learning optimizer loss eval evaluation metric metrics score dataset datasets ' +
    'data parent model merge merged release library generator parameters params flops deprecated fixed'
  ).split(' '),
);

/** Whether a value is text, or holds nothing but texts and what is off. */
function isText(value: unknown): boolean {
  if (typeof value === 'object' && value !== null) return Object.values(value).every(isText);
  return typeof value === 'string' || value === null || value === false;
}

/**
 * Whether a key that no table has may change what the model computes: by its name, if that says what it is about; else
 * by its value, since a setting of an architecture is seldom a text.
 */
function maySet(key: string, value: unknown): boolean {
  const name = key.replace(/([a-z\d])([A-Z])/g, '$1_$2').toLowerCase();
  const words = name.split(/[^a-z]+/);
  if (STEMS.test(name) || words.some((word) => WORDS.has(word))) return true;
  return !words.some((word) => NOTES.has(word)) && !isText(value);
}

/**
 * Refuses settings that are not computed here, and keys that are not known and may be such settings.
 * @throws DUltraError BAD_CHECKPOINT naming the key, what was expected and what came
 */
export function checkConfigKeys(json: Readonly<Record<string, unknown>>, file: string, table: KeyTable): void {
  const unknown = checkKeyTable(json, file, table);
  refuseUnknown(
    json,
    file,
    unknown.filter((key) => maySet(key, json[key])),
  );
}
