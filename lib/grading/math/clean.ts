// Brings the notations of an answer's text together: Unicode, Markdown, spacing and separators of thousands become the
// LaTeX that the tokens are read from. Every replacement takes time linear in the text.

const SUPERSCRIPTS = '⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ';
const SUBSCRIPTS = '₀₁₂₃₄₅₆₇₈₉';
const VULGAR: Readonly<Record<string, string>> = {
  '½': '1/2',
  '⅓': '1/3',
  '⅔': '2/3',
  '¼': '1/4',
  '¾': '3/4',
  '⅕': '1/5',
  '⅖': '2/5',
  '⅗': '3/5',
  '⅘': '4/5',
  '⅙': '1/6',
  '⅚': '5/6',
  '⅐': '1/7',
  '⅛': '1/8',
  '⅜': '3/8',
  '⅝': '5/8',
  '⅞': '7/8',
  '⅑': '1/9',
  '⅒': '1/10',
};
const SIGNS: Readonly<Record<string, string>> = {
  '−': '-',
  '–': '-',
  '‒': '-',
  '﹣': '-',
  '‐': '-',
  '‑': '-',
  '×': '\\times ',
  '·': '\\cdot ',
  '⋅': '\\cdot ',
  '∙': '\\cdot ',
  '•': '\\cdot ',
  '∗': '*',
  '÷': '/',
  '∕': '/',
  '⁄': '/',
  '±': '\\pm ',
  '∓': '\\mp ',
  '≤': '\\le ',
  '≥': '\\ge ',
  '⩽': '\\le ',
  '⩾': '\\ge ',
  '≠': '\\ne ',
  '≈': '\\approx ',
  '≃': '\\approx ',
  '≅': '\\cong ',
  '≡': '\\equiv ',
  '∈': '\\in ',
  '∪': '\\cup ',
  '∩': '\\cap ',
  '∖': '\\setminus ',
  '∅': '\\emptyset ',
  '∞': '\\infty ',
  '√': '\\usqrt ',
  '∛': '\\ucbrt ',
  '°': '^\\circ ',
  '∠': '\\angle ',
  '△': '\\triangle ',
  '→': '\\to ',
  '⟨': '\\langle ',
  '⟩': '\\rangle ',
  '⌊': '\\lfloor ',
  '⌋': '\\rfloor ',
  '⌈': '\\lceil ',
  '⌉': '\\rceil ',
  ℝ: '\\mathbb{R}',
  ℤ: '\\mathbb{Z}',
  ℕ: '\\mathbb{N}',
  ℚ: '\\mathbb{Q}',
  ℂ: '\\mathbb{C}',
  '∣': '|',
  '∑': '\\sum ',
  '∏': '\\prod ',
  '∫': '\\int ',
  '…': '\\ldots ',
  '∧': '\\land ',
  '∨': '\\lor ',
  '“': '"',
  '”': '"',
  '’': "'",
  '‘': "'",
  '′': "'",
  '″': "''",
};
const GREEK =
  'αalpha βbeta γgamma δdelta εepsilon ζzeta ηeta θtheta ιiota κkappa λlambda μmu νnu ξxi πpi ρrho σsigma τtau υupsilon φphi χchi ψpsi ωomega ΓGamma ΔDelta ΘTheta ΛLambda ΞXi ΠPi ΣSigma ΦPhi ΨPsi ΩOmega ϕphi ϵepsilon';
for (const entry of GREEK.split(' ')) (SIGNS as Record<string, string>)[entry[0]] = `\\${entry.slice(1)} `;

/** Unicode to ASCII and LaTeX. */
function ascii(text: string): string {
  // The common case has none.
  // biome-ignore lint/suspicious/noControlCharactersInRegex: the range of ASCII
  if (/^[\x00-\x7f]*$/.test(text)) return text;
  let out = '';
  let script: '^' | '_' | '' = '';
  for (const character of text) {
    const above = SUPERSCRIPTS.indexOf(character);
    const below = SUBSCRIPTS.indexOf(character);
    const next = above >= 0 ? '^' : below >= 0 ? '_' : '';
    if (script !== next) {
      if (script) out += '}';
      if (next) out += `${next}{`;
      script = next;
    }
    if (above >= 0) out += '0123456789+-()n'[above];
    else if (below >= 0) out += String(below);
    else if (VULGAR[character]) out += `\\vulgar{${VULGAR[character]}}`;
    else if (SIGNS[character]) out += SIGNS[character];
    // Zero-width and soft characters.
    else if (/\u00ad|[\u200b-\u200f]|[\u2060-\u2064]|\ufe0f|\ufeff/.test(character)) continue;
    else out += character;
  }
  if (script) out += '}';
  // Full-width letters, digits and signs; kinds of spaces.
  return out.normalize('NFKC').replace(/[−–]/g, '-').replace(/\s/g, ' ');
}

/** A space of LaTeX or text. */
const SPACE = String.raw`(?:\s|(?<!\\)\\[,;:> ]|~|\\(?:quad|qquad|thinspace|medspace|thickspace|enspace|enskip|nobreakspace)(?![a-zA-Z])|\{\\[,;: ]\})`;
/** A comma that LaTeX sets without the space of a list. */
const TIGHT_COMMA = String.raw`(?:\s*(?:\{\s*,\s*\\?!?\s*\}|,(?:\s*\\!)+|(?:\\!)+,|\\mathord\{,\}|\\mathpunct\{,\})\s*)`;
const GROUPED = new RegExp(String.raw`(?<![\d.])([1-9]\d{0,2})((?:(?:${TIGHT_COMMA}|,)\d{3})+)(?!\d)`, 'g');
const SPACED = new RegExp(
  String.raw`(?<![\d.,^_/]|[\d.^_/]\s)([1-9]\d{0,2})((?:${SPACE}{1,3}\d{3})+)(?!\d|\s?/|\s?\\[dt]?frac)`,
  'g',
);
const SPACED_DECIMALS = new RegExp(String.raw`(\d\.\d{3})((?:${SPACE}{1,3}\d{3})+)(?!\d)`, 'g');
const SPACED_ANY = new RegExp(SPACE, 'g');

/** Removes what separates thousands for certain; a plain comma between digits may also separate the parts of a list. */
function joinThousands(text: string): string {
  const isTight = new RegExp(TIGHT_COMMA);
  return text
    .replace(GROUPED, (whole, head: string, tail: string) =>
      isTight.test(tail) ? head + tail.replace(/\D/g, '') : whole,
    )
    .replace(/(?<=\\[$£€¥₹]\s?)[1-9]\d{0,2}(?:,\d{3})+(?![\d,])/g, (number) => number.replaceAll(',', ''))
    .replace(SPACED, (_whole, head: string, tail: string) => head + tail.replace(/\D/g, ''))
    .replace(SPACED_DECIMALS, (_whole, head: string, tail: string) => head + tail.replace(/\D/g, ''));
}

/** Commands that only say how the answer looks. */
const LOOKS =
  /\\(?:left|right|middle|[bB]igg?[lrm]?|displaystyle|textstyle|scriptstyle|limits|nolimits|mathstrut|strut|allowbreak|nonumber|notag|centering|hline|boldmath)(?![a-zA-Z])\s*(.|$)/g;

/** Dollar signs around mathematics go; those before an amount become "\$". */
function dollars(text: string): string {
  const bare = text.match(/(?<!\\)\$/g)?.length ?? 0;
  if (bare === 0) return text;
  const isAmount = /^[^$]*\$\s?[\d.]/.test(text) && !/(?<!\\)\$[.,;]?$/.test(text);
  return text.replace(/(?<!\\)\$(\s?[\d.])?/g, (_mark, digit: string | undefined) =>
    digit !== undefined && isAmount ? `\\$${digit}` : ` ${digit ?? ''}`,
  );
}

/** The text of an answer in one notation. */
export function cleanAnswer(answer: string): string {
  let text = ascii(answer)
    .trim()
    // Markdown.
    .replace(/^(?:\*{1,3}|__|`|")(.*?)(?:\*{1,3}|__|`|")?([.,]?)$/s, '$1$2')
    .replace(/^\\[([]|\\[)\]][.,]?$/g, '');
  // Backslashes that were escaped once too often.
  if (/\\\\begin/.test(text)) text = text.replaceAll('\\\\', '\\');
  else if (!text.includes('\\begin')) text = text.replace(/\\\\(?=[a-zA-Z])/g, '\\');
  text = dollars(text)
    .replace(/\\(?:h|v)space\*?\s*\{[^{}]*\}|\\[hv]?phantom\s*\{[^{}]*\}|\\label\s*\{[^{}]*\}|\\tag\s*\{[^{}]*\}/g, ' ')
    .replace(/\\(?:left|right)\s*\./g, ' ')
    .replace(LOOKS, (_look, next: string) => (/[a-zA-Z]/.test(next) ? ` ${next}` : next))
    .replace(/[£€¥₹]/g, '\\$&')
    .replace(/\\?¢/g, ' cents');
  return (
    joinThousands(text)
      .replace(/(?<!\\)\\!/g, '')
      .replace(/(?<=[\d{]\s?)([ap])\.\s?m\./gi, '$1m')
      .replace(/\{\s*,\s*\}/g, ',')
      .replace(SPACED_ANY, ' ')
      .replace(/\s+/g, ' ')
      .trim()
      .replace(/^(?:[=:]|\\approx(?![a-zA-Z])|\\therefore(?![a-zA-Z]))\s*/, '')
      .replace(/^\(?([a-zA-Z])\)\.?$/, '$1')
      // 3 x 10^8.
      .replace(/(?<=\d)\s*x\s*(?=10\s?\^)/g, '\\cdot ')
      .replace(/(?<![.\\])[.;,]$|(?<=\d)\.$/, '')
      .trim()
  );
}
