// A plugin of typedoc: puts every name of the public API into a category by the room of lib/ that defines it, so that the
// reference opens on what the names are for.
const path = require('node:path');
const { Comment, CommentTag, Converter } = require('typedoc');

const lib = path.resolve(__dirname, '..', 'lib');
const CATEGORIES = [
  [/^generation\/|^types\.ts$/, 'Generating text'],
  [/^decisions\//, 'Decisions'],
  [/^sampling\//, 'Samplers and caches'],
  [/^hub\/|^model\/(load|download|create|save|planner-head|adapter|config|tokenizer|train-tokenizer|causal)/, 'Models'],
  [/^data\//, 'Data'],
  [/^(training|distributed)\//, 'Training'],
  [/^rewards\//, 'Rewards'],
  [/^evaluation\//, 'Evaluation'],
  [/^(errors|system|text|dtypes)\.ts$/, 'Errors and system'],
  [/^model\/|^native\/|^kernels\.ts$/, 'Passes, trainers and kernels by themselves'],
];

/** The category of a file of lib/. */
function categoryOf(file) {
  const name = path.relative(lib, file).split(path.sep).join('/');
  return CATEGORIES.find(([pattern]) => pattern.test(name))?.[1] ?? 'Other';
}

exports.load = (app) => {
  app.converter.on(Converter.EVENT_CREATE_DECLARATION, (context, reflection) => {
    if (!reflection.parent?.isProject()) return;
    const declaration = context.getSymbolFromReflection(reflection)?.declarations?.[0];
    if (!declaration) return;
    const category = new CommentTag('@category', [
      { kind: 'text', text: categoryOf(declaration.getSourceFile().fileName) },
    ]);
    reflection.comment ??= new Comment();
    reflection.comment.blockTags.push(category);
  });
};
