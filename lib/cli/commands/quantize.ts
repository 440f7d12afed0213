// dultra quantize: a checkpoint with its matrices in 8 or 4 bits.
import { type Command, Option } from 'commander';
import { type QuantizeOptions, quantizeModel } from '../../index';
import { interruptSignal } from '../errors';
import { addCheckpointOptions } from '../model';
import { addOutputOptions, formatBytes, type OutputFlags, printData, printJson, printMessage } from '../output';
import { ProgressBar } from '../progress';
import { given } from '../values';

interface Flags extends OutputFlags, Pick<QuantizeOptions, 'to' | 'revision' | 'maskTokenId'> {
  out: string;
  attendedBlock?: number;
}

async function quantize(source: string, flags: Flags): Promise<void> {
  const { to = 'q8', out, quiet, revision, maskTokenId, attendedBlock } = flags;
  const isGguf = out.toLowerCase().endsWith('.gguf');
  const bar = new ProgressBar('{bar} {percentage}% of {size}, {eta_formatted} left');
  try {
    const result = await quantizeModel(source, out, {
      ...given({ revision, maskTokenId, blockLength: attendedBlock }),
      to,
      signal: interruptSignal,
      onProgress: ({ doneBytes, totalBytes }) => {
        if (!quiet && process.stderr.isTTY) bar.update(doneBytes, totalBytes, { size: formatBytes(totalBytes) });
      },
    });
    bar.stop();
    if (flags.json) {
      printJson({ model: source, to, ...result });
      return;
    }
    const { bytesBefore, bytesAfter, quantized, kept, left, tokenizer } = result;
    if (!quiet) {
      printMessage(
        `${quantized} matrices quantised, ${kept} tensors kept: ${formatBytes(bytesBefore)} became ${formatBytes(bytesAfter)}`,
      );
      if (left > 0) printMessage(`${left} tensors of the planner head left out: a GGUF file has no place for them`);
      if (isGguf && !tokenizer)
        printMessage("the tokenizer is left out: put the model's tokenizer.json beside the file");
    }
    printData(result.folder);
  } finally {
    bar.stop();
  }
}

/** Adds `dultra quantize` to the program. */
export function register(program: Command): void {
  const command = program
    .command('quantize')
    .summary('write a model with its matrices in 8 or 4 bits')
    .description(
      'Writes a model with its matrices quantised into a folder and prints the folder. The planner head, norms and ' +
        'biases stay as they are, and with q4 the embedding table and the output head have 8 bits.',
    )
    .argument('<model>', 'checkpoint folder, run folder or hub id');
  command
    .optionsGroup('Model:')
    .addOption(
      new Option(
        '--to <bits>',
        'q8, q4 (16 uneven steps) or q4_0 (even ones, for programs that read no others) (default: q8)',
      ).choices(['q8', 'q4', 'q4_0']),
    )
    .option('--revision <name>', 'branch, tag or commit of a hub id (default: main)');
  addCheckpointOptions(command)
    .optionsGroup('Output:')
    .requiredOption('-o, --out <folder>', 'new folder of the quantised model, or a new file .gguf');
  addOutputOptions(command, '{ model, to, folder, bytesBefore, bytesAfter, quantized, kept, left, tokenizer }').action(
    quantize,
  );
}
