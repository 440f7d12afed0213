// config.json of a LLaDA checkpoint: fields that are refused, and those that may be absent.
import { execFileSync } from 'node:child_process';
import { copyFileSync, mkdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { loadModel } from '../lib';
import { parsePythonJson } from '../lib/files/json';
import { loadFailure, makeCheckpoint } from './checkpoints';
import { exceptOnWindows, temporaryFolder } from './helpers';

const WEIGHTS = 'model.safetensors';

describe('config.json', () => {
  const wrong: [string, unknown, RegExp][] = [
    ['d_model', undefined, /d_model: .*got undefined/],
    ['d_model', 0, /d_model: .*got 0/],
    ['d_model', 25, /d_model: expected a multiple of n_heads \(6\), got 25/],
    ['d_model', 18, /d_model \/ n_heads: expected an even head size, got 3/],
    ['d_model', 36, /tensor model\.transformer\.wte\.weight: expected shape \[48, 36\], got \[48, 24\]/],
    ['d_model', '24', /d_model: .*got "24"/],
    ['d_model', 2 ** 40, /d_model: .*got 1099511627776/],
    ['n_heads', 5, /d_model: expected a multiple of n_heads \(5\)/],
    ['n_heads', -6, /n_heads: .*got -6/],
    ['n_heads', 1.5, /n_heads: .*got 1\.5/],
    ['n_heads', 2, /k_proj\.weight: expected shape \[24, 24\], got \[8, 24\]/],
    ['n_kv_heads', 4, /n_heads: expected a multiple of n_kv_heads \(4\), got 6/],
    ['n_kv_heads', 3, /k_proj\.weight: expected shape \[12, 24\], got \[8, 24\]/],
    ['n_kv_heads', null, /k_proj\.weight: expected shape \[24, 24\], got \[8, 24\]/],
    ['n_layers', 3, /missing tensors model\.transformer\.blocks\.2\.q_proj\.weight.* and 4 more/],
    ['n_layers', 65536, /its config has 65537 layers, its files only \d+ tensors/],
    ['n_layers', 1e9, /n_layers: /],
    ['n_layers', -1, /n_layers: /],
    ['mlp_hidden_size', 41, /ff_proj\.weight: expected shape \[41, 24\], got \[40, 24\]/],
    ['mlp_hidden_size', null, /ff_proj\.weight: expected shape \[96, 24\], got \[40, 24\]/],
    ['vocab_size', 49, /embedding_size: expected at least vocab_size \(49\), got 48/],
    ['vocab_size', null, /vocab_size: /],
    ['embedding_size', 47, /wte\.weight: expected shape \[47, 24\], got \[48, 24\]/],
    ['embedding_size', null, /wte\.weight: expected shape \[45, 24\], got \[48, 24\]/],
    ['embedding_size', 2 ** 31, /embedding_size: /],
    ['max_sequence_length', 0, /max_sequence_length: /],
    ['max_sequence_length', undefined, /max_sequence_length: /],
    ['rope_theta', 0, /rope_theta: /],
    ['rope_theta', 1e300, /rope_theta: /],
    ['rope_theta', '500000', /rope_theta: .*got "500000"/],
    ['rms_norm_eps', -1e-5, /rms_norm_eps: /],
    ['rms_norm_eps', 1e30, /rms_norm_eps: /],
    ['weight_tying', 'yes', /weight_tying: /],
    ['mask_token_id', 48, /mask_token_id: expected an id below embedding_size \(48\), got 48/],
    ['mask_token_id', undefined, /mask_token_id: /],
    ['mask_token_id', -1, /mask_token_id: /],
    ['eos_token_id', 1000, /eos_token_id: expected an id below/],
    ['eos_token_id', 1.5, /eos_token_id: /],
    ['eos_token_id', -2, /eos_token_id: expected an id below 48, a list of such ids, or -1 for none, got -2/],
    ['eos_token_id', [43, 48], /eos_token_id: expected an id below 48, .* got \[43,48\]/],
    ['eos_token_id', [43, null], /eos_token_id: expected an id below 48, .* got \[43,null\]/],
    ['eos_token_id', '43', /eos_token_id: expected an id below 48, .* got "43"/],
    ['mask_token_id', [44], /mask_token_id: .*got \[44\]/],
    ['pad_token_id', 48, /pad_token_id: expected an id below/],
    ['pad_token_id', -2, /pad_token_id: /],
    ['use_adaln', 1, /use_adaln: /],
    ['use_adaln', false, /missing tensors norm_out_2\.weight, norm_out_2\.bias$/],
    ['num_head_layers', 2, /missing tensors mask_head\.1\.q_proj\.weight/],
    ['num_head_layers', 1e6, /num_head_layers: /],
    ['use_mask_embeddings', 'x', /use_mask_embeddings: /],
    ['activation_type', 'swiglu', /activation_type: expected "silu" or null, got "swiglu"/],
    ['block_type', 'sequential', /block_type: expected "llama"/],
    ['layer_norm_type', 'default', /layer_norm_type: expected "rms"/],
    ['layer_norm_with_affine', false, /layer_norm_with_affine: expected true/],
    ['alibi', true, /alibi: expected false/],
    ['attention_layer_norm', true, /attention_layer_norm: /],
    ['input_emb_norm', true, /input_emb_norm: /],
    ['scale_logits', true, /scale_logits: /],
    ['include_bias', true, /missing tensors .*q_proj\.bias/],
    ['include_bias', 1, /include_bias: /],
    ['include_qkv_bias', true, /missing tensors .*q_proj\.bias/],
    ['bias_for_layer_norm', true, /bias_for_layer_norm: /],
    ['rope', false, /rope: expected true/],
    ['multi_query_attention', true, /multi_query_attention: /],
    ['use_block_embeddings', true, /use_block_embeddings: /],
    ['clip_qkv', 8, /clip_qkv: expected null, got 8/],
    ['rope_scaling', { type: 'linear', factor: 2 }, /rope_scaling\.type: expected "default" or null, got "linear"/],
    ['block_group_size', 4, /block_group_size: expected 1 or null, got 4/],
  ];
  const { folder: base } = makeCheckpoint();
  const config = JSON.parse(readFileSync(path.join(base, 'config.json'), 'utf8'));
  const withConfig = (value: unknown): string => {
    const folder = temporaryFolder();
    copyFileSync(path.join(base, WEIGHTS), path.join(folder, WEIGHTS));
    writeFileSync(path.join(folder, 'config.json'), typeof value === 'string' ? value : JSON.stringify(value));
    return folder;
  };

  test.each(wrong)('%s = %j is refused', async (field, value, message) => {
    const folder = withConfig({ ...config, [field]: value });
    const error = await loadFailure(folder);
    expect(error.code).toBe('BAD_CHECKPOINT');
    expect(error.message).toMatch(message);
    expect(error.message).toContain(folder);
  });

  test('fields that may be absent', async () => {
    const {
      pad_token_id: _pad,
      eos_token_id: _eos,
      rope_theta: _theta,
      rms_norm_eps: _eps,
      weight_tying: _tying,
      ...rest
    } = config;
    const model = await loadModel(withConfig(rest));
    expect(model.config).toMatchObject({
      eosTokenId: null,
      padTokenId: null,
      ropeTheta: 10000,
      rmsNormEps: 1e-5,
      weightTying: false,
    });
    const { finishReason } = await model.generate({ promptIds: [1] }, { maxTokens: 4 });
    expect(finishReason).toBe('length');
    model.dispose();
  });

  test.each([
    ['nothing', ''],
    ['half of it', '{"d_model": 24, '],
    ['an array', '[]'],
    ['null', 'null'],
    ['a number', '5'],
    ['not text', '\u0000\u0001'],
    ['very deep', `${'['.repeat(200_000)}${']'.repeat(200_000)}`],
    ['a field very deep', `{"d_model": ${'['.repeat(200_000)}${']'.repeat(200_000)}}`],
    [
      'a setting very deep',
      JSON.stringify(config).replace('"alibi":false', `"alibi":${'['.repeat(200_000)}${']'.repeat(200_000)}`),
    ],
  ])('%s is refused', async (_name, text) => {
    const error = await loadFailure(withConfig(text));
    expect(error.code).toBe('BAD_CHECKPOINT');
    expect(error.message).toMatch(/config\.json(, line 1)?: /);
    expect(error.message.length).toBeLessThan(1000);
  });

  describe('what Python calls JSON', () => {
    const text = JSON.stringify(config);
    const load = async (content: string | Buffer) => {
      const folder = withConfig('');
      writeFileSync(path.join(folder, 'config.json'), content);
      const model = await loadModel(folder, { threads: 1 });
      model.dispose();
      return model.config;
    };

    test('NaN and infinities are numbers, in strings they are text', async () => {
      const extra =
        '"last_loss": NaN, "best_loss":-Infinity, "metrics": [Infinity, NaN,-Infinity], "note": "NaN, \\"Infinity\\"", ';
      expect(await load(`{${extra}${text.slice(1)}`)).toEqual(await load(text));
      expect(parsePythonJson('{"a": [NaN, -Infinity,Infinity], "NaN": "NaN", "b": "\\\\", "c": NaN}')).toEqual({
        a: [Number.NaN, -Infinity, Infinity],
        NaN: 'NaN',
        b: '\\',
        c: Number.NaN,
      });
      const folder = withConfig(text.replace('"rope_theta":500000', '"rope_theta":Infinity'));
      expect((await loadFailure(folder)).message).toMatch(/config\.json: rope_theta: /);
    });

    test.each([
      '-NaN',
      '1Infinity',
      'Infinity2',
      '+Infinity',
      '--Infinity',
      'NaNs',
      'nan',
      '1e-Infinity',
      '.NaN',
      '0.NaN',
    ])('%s is no number', async (token) => {
      expect(() => parsePythonJson(`{"a": ${token}}`)).toThrow(/^not JSON \(/);
      expect(() => parsePythonJson(`[NaN, ${token}]`)).toThrow(/^not JSON \(/);
    });

    test('nor is it a name', () => {
      expect(() => parsePythonJson('{NaN: 1, "b": NaN}')).toThrow(/^not JSON \(/);
    });

    test('a byte order mark is dropped', async () => {
      expect(await load(`\ufeff${text}`)).toEqual(await load(text));
    });

    test.each([
      `{ // widths\n${text.slice(1)}`,
      `/* LLaDA */ ${text}`,
      `# LLaDA\n${text}`,
      `{"url": "https://example.org/#a", ${text.slice(1)} // end`,
    ])('comments are refused as such: %.30s', async (content) => {
      const { message } = await loadFailure(withConfig(content));
      expect(message).toMatch(/config\.json: not JSON \(.*\); JSON has no comments: remove them$/s);
    });

    test('other damage is not called a comment', async () => {
      const { message } = await loadFailure(withConfig(`{"url": "https://example.org/#a", "b": }`));
      expect(message).toMatch(/not JSON \(.*\)$/s);
      expect(message).not.toContain('comment');
    });

    test('other encodings are refused', async () => {
      for (const encoding of ['latin1', 'utf16le'] as const) {
        const folder = withConfig('');
        const content = Buffer.from(`\ufeff{"note": "größer", ${text.slice(1)}`, encoding);
        writeFileSync(path.join(folder, 'config.json'), content);
        expect((await loadFailure(folder)).message).toMatch(/config\.json, line 1: expected UTF-8 text, got /);
      }
    });
  });

  test('a pointer of Git LFS in its place, or in that of a file beside it', async () => {
    const pointer = `version https://git-lfs.github.com/spec/v1\noid sha256:${'0a'.repeat(32)}\nsize 2710\n`;
    const said = /: a Git LFS pointer, not the file itself; "git lfs pull" in its repository fetches the file$/;
    expect((await loadFailure(withConfig(pointer))).message).toMatch(said);
    for (const name of ['tokenizer.json', 'model.safetensors.index.json']) {
      const folder = withConfig(config);
      writeFileSync(path.join(folder, name), pointer);
      const { message } = await loadFailure(folder);
      expect(message).toMatch(said);
      expect(message).toContain(`${name}: `);
    }
  });

  test('a prototype is not a setting', async () => {
    const error = await loadFailure(withConfig('{"model_type": "llada", "__proto__": {"d_model": 24}}'));
    expect(error.message).toMatch(/d_model: /);
  });

  test('a folder and far too much in its place', async () => {
    const folder = withConfig('');
    const file = path.join(folder, 'config.json');
    rmSync(file);
    expect((await loadFailure(folder)).message).toMatch(/: expected config\.json beside the weights, got none$/);
    mkdirSync(file);
    expect((await loadFailure(folder)).message).toMatch(/config\.json: expected a file/);
    rmSync(file, { recursive: true });
    writeFileSync(file, '');
    truncateSync(file, 2 ** 33);
    expect((await loadFailure(folder)).message).toMatch(/config\.json: expected at most \d+ bytes, got 8589934592/);
  });

  exceptOnWindows('Windows has no pipes in folders')('a pipe in its place', async () => {
    const folder = withConfig('');
    const file = path.join(folder, 'config.json');
    rmSync(file);
    execFileSync('mkfifo', [file]);
    expect((await loadFailure(folder)).message).toMatch(/config\.json: expected a file/);
  });
});
