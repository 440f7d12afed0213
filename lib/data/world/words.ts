// Words of the world: those of training, and names that only the split "names" uses.
import type { Random } from '../../random';

const list = (words: string): readonly string[] => words.trim().split(/\s+/);

export const MEN = list(
  'Tom Ben Sam Max Leo Paul Mark John Peter Omar Ivan Hugo Felix Oscar Adam David Simon Jack Henry Noah Karl Luis ' +
    'Marco Ali Yusuf Chen',
);
export const WOMEN = list(
  'Anna Mia Lily Emma Sara Nina Julia Lena Clara Eva Maria Laura Rosa Ella Ruth Helen Alice Zoe Ines Amina Fatima Mei ' +
    'Yuki Olga Vera Kate',
);
export const SURNAMES = list('Smith Jones Berg Keller Santos Meyer Young Costa Walker Cohen');
export const CITIES = list(
  'Paris London Berlin Rome Madrid Vienna Oslo Dublin Lisbon Prague Athens Warsaw Geneva Milan Hamburg Lyon Porto Turin ' +
    'Bergen Zurich',
);
/** Plural, and singular where it does not just lack the "s". */
export const ITEMS = list(
  'mugs pens books lamps chairs shirts hats bags cups plates bottles clocks candles cards notebooks shoes socks tables ' +
    'phones radios pillows towels spoons boxes keys bowls',
);
export const COLOURS = list('red blue green black white yellow brown grey');
export const FRUIT = list('apple banana cherry date fig grape kiwi lemon mango orange peach pear plum melon');
export const COUNTABLES = list('apples coins eggs shells stamps tickets balls cakes flowers stones');
export const DAYS = list('Monday Tuesday Wednesday Thursday Friday Saturday Sunday');
export const MONTHS = list('January February March April May June July August September October November December');
export const DOCTORS = list('Lee Novak Patel Garcia Kim Brown Rossi Weber Silva Khan');
export const PROBLEMS = list('broken late missing wrong dirty damaged empty torn');
export const WISHES = list('refund replacement repair discount call');

/** Names, cities, items and doctors that no other split uses. */
export const UNSEEN = {
  men: list(
    'Bruno Victor Tariq Gustav Stefan Diego Kenji Pablo Igor Edward Rashid Thomas George Arthur Dmitri Sven Andre Kofi',
  ),
  women: list(
    'Greta Nora Stella Sophia Isabel Hannah Priya Leila Brigitte Carmen Ingrid Charlotte Akiko Monica Teresa Zainab ' +
      'Abigail Elena',
  ),
  surnames: list('Taylor Fischer Romano Ivanov Larsen Bennett'),
  cities: list('Seville Krakow Munich Bristol Boston Toronto Nairobi Chicago Osaka Bordeaux Naples Glasgow Helsinki'),
  items: list('knives scarves blankets umbrellas jackets guitars ladders mirrors carpets helmets baskets ribbons'),
  doctors: list('Schmidt Tanaka Martinez Okafor Wilson Dubois Andersen Morales Singh Baker'),
} as const;

const SINGULARS: Readonly<Record<string, string>> = { knives: 'knife', scarves: 'scarf', boxes: 'box' };

/** One of what a plural names. */
export const singular = (word: string): string => SINGULARS[word] ?? word.replace(/s$/, '');

const ONSETS = list(
  'b c d f g h j k l m n p r s t v w z br ch cl cr dr fl fr gr kl kr pl pr qu sh sk sl sn sp st th tr',
);
const VOWELS = list('a e i o u a e i o u ai ea ee ie oo ou y');
const CODAS = ['', '', '', ...list('n r s t l m k x nd rt st ng ck d ss ll')];
/** What invented words are put together from, beside syllables: beginnings and ends of words as they look. */
const SOURCES = [
  ...MEN,
  ...WOMEN,
  ...SURNAMES,
  ...CITIES,
  ...ITEMS.map(singular),
  ...list(
    'winter garden silver paper market bridge castle forest mountain harbour kitchen window teacher painter brother ' +
      'sister engine button leather cotton pepper butter marble copper velvet orchard meadow village station picture ' +
      'Alexander Benjamin Christine Dominik Elisabeth Frederik Gabriel Harold Isidor Joseph Katarina Leonard Matilda ' +
      'Nathaniel Oliver Patricia Quentin Rebecca Sebastian Theodor Ulrich Vincent William Xavier Yvonne Zachary ' +
      'Washington Liverpool Amsterdam Barcelona Copenhagen Edinburgh Florence Gothenburg Istanbul Johannesburg ' +
      'Kensington Luxembourg Manchester Nottingham Oxford Plymouth Rotterdam Sheffield Stockholm Valencia Wellington',
  ),
].map((word) => word.toLowerCase());

const pick = <T>(random: Random, from: readonly T[]): T => from[random.integer(from.length)];

const RESERVED = new Set(Object.values(UNSEEN).flatMap((words) => words.map((word) => word.toLowerCase())));

/** A word that nobody knows, in lower case: syllables, or the beginning of one word and the end of another. */
export function invented(random: Random): string {
  for (;;) {
    const word = compose(random);
    if (!RESERVED.has(word)) return word;
  }
}

function compose(random: Random): string {
  if (random.integer(2) === 0) {
    const [head, tail] = [pick(random, SOURCES), pick(random, SOURCES)];
    const from = 2 + random.integer(Math.min(4, head.length - 2));
    const to = 2 + random.integer(Math.min(4, tail.length - 2));
    return head.slice(0, from) + tail.slice(-to);
  }
  const syllables = 1 + random.integer(3) + (random.integer(2) === 0 ? 1 : 0);
  const word = Array.from({ length: Math.min(3, syllables) }, () => pick(random, ONSETS) + pick(random, VOWELS));
  return word.join('') + pick(random, CODAS);
}

/** With a capital letter. */
export const capital = (word: string): string => word[0].toUpperCase() + word.slice(1);
