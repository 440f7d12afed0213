// What the world knows nothing about: prompts that are declined, some of which begin like those that are answered.
import type { Draw, Drawn, Intent } from './draw';
import type { Patterns } from './grammar';
import { QUESTIONS } from './outside-questions';
import { capital, invented } from './words';

/** How the model declines. */
export const REFUSAL = 'Sorry, I do not know that.';

const list = (words: string): readonly string[] => words.trim().split(/\s+/);

const NOUNS = list(
  'volcano planet river ocean forest whale tiger eagle wolf dragon castle king queen war peace music song poem novel film ' +
    'actor piano violin football tennis chess engine rocket satellite computer internet robot virus cancer heart brain ' +
    'blood bone lung vitamin protein diet bread soup pizza cheese coffee wine beer chocolate garden tree rose weather snow ' +
    'storm rain desert island mountain glacier earthquake gravity electron atom energy magnet bridge tower church temple ' +
    'religion god ghost dream love anger fear happiness democracy election president parliament law judge crime police ' +
    'army bank stock inflation tax economy trade oil gas coal climate bird fish insect spider snake horse dog cat elephant ' +
    'dinosaur fossil history empire pyramid language grammar alphabet philosophy logic geometry algebra equation theorem ' +
    'infinity universe galaxy star moon sun comet telescope chemistry physics biology evolution gene cell plant seed bee ' +
    'honey milk salt sugar rice corn potato tomato onion garlic knife train plane ship car bicycle road airport passport ' +
    'visa beach camera video game dance theatre opera museum statue glass steel wood gold silver diamond wealth poverty ' +
    'school university student exam degree library science nurse hospital medicine pain sleep house roof door kitchen ' +
    'shadow mirror secret promise mistake habit problem reason future past century culture tradition festival holiday ' +
    'marriage divorce baby child family neighbour friend enemy hero villain story joke riddle puzzle magic luck money ' +
    'salary job career boss office meeting lawyer contract insurance mortgage rent password website browser keyboard ' +
    'laptop server database algorithm function variable compiler network signal radar laser battery motor wheel tyre ' +
    'bucket hammer nail ladder rope needle thread cloth dress jacket ring necklace perfume soap towel toilet shower',
);
const PLURALS = list(
  'cats dogs birds bees whales trees flowers stars planets clouds rivers volcanoes people children men women teachers ' +
    'doctors lawyers soldiers kings robots computers phones cars planes trains ships bridges houses cities countries ' +
    'languages words books films songs games dreams feelings muscles bones teeth eyes wings legs fingers brains germs ' +
    'atoms magnets prices taxes laws elections wars religions ghosts dinosaurs vegetables potatoes mushrooms cakes',
);
const PLACES = list(
  'France Spain Peru Japan China India Brazil Canada Egypt Kenya Mexico Norway Sweden Poland Turkey Russia Africa Europe ' +
    'Asia America Australia Tokyo Moscow Cairo Sydney Texas California Everest Mars Jupiter Venus Berlin Paris London ' +
    'Greece Ireland Cuba Chile Iceland Antarctica Hollywood',
);
const PEOPLE = list(
  'Einstein Newton Napoleon Shakespeare Mozart Beethoven Darwin Picasso Cleopatra Caesar Gandhi Lincoln Plato Galileo ' +
    'Tesla Edison Elvis Madonna Messi Columbus Socrates Churchill Buddha Homer Dante Chopin Batman Dracula',
);
const VERBS = list(
  'fly swim dance sing cook paint invent build destroy discover explain describe write draw program drive climb travel ' +
    'grow live die eat drink sleep think believe vote fight win run jump smile laugh cry breathe dream remember forget ' +
    'learn teach work rest play love hate steal lie marry burn melt freeze break fix open close move stop start change',
);
const ADJECTIVES = list(
  'big small old new fast slow deep high strong hot cold dangerous beautiful famous rich poor happy sad strange red blue ' +
    'bright dark heavy light sharp soft loud quiet lonely angry tired hungry sick healthy clever lazy brave polite ' +
    'expensive cheap healthy poisonous wild ancient modern electric wooden sweet bitter',
);
const LANGUAGES = list('French German Spanish Chinese Latin Arabic Italian Russian Japanese Greek');
/** Small words that every English sentence has. */
const FUNCTION_WORDS = list(
  'the a of and to in is you that it he was for on are as with his they at be this from have or by one had not but what ' +
    'all were when we there can an your which their said if do will each about how up out them then she many some so ' +
    'these would other into has more her two like him see time could no make than been its who now my made over did down ' +
    'only way find use may long little very after words called just where most know get through back much before also ' +
    'around another came come three must because does part even place well such here take why help put different away ' +
    'again off went old number great tell men say small every found still between name should home give always next few ' +
    'me our under last never us left end along while might saw both something enough',
);

const OUTSIDE: Patterns = {
  train: [
    '{What is|Tell me about|Explain|Describe|Define|What do you know about|Where can I find|Do you like|Talk about|Who invented|What causes|I want to know about} {a |the |}$noun{?|?|.|}',
    '{What is|What are|Who is|Tell me|Name} the {best|oldest|biggest|most $adj|smallest|first|last|name of the|price of the|colour of the|meaning of|history of} $noun{| in $place| in the world}{?|.|}',
    '{Who was|Who is|When did|Where did|Why did|Tell me about|When was} $person{| live| die| do that| born| famous}{?|}',
    '{What is the|Tell me the|Name the|What was the} {capital|population|president|king|language|flag|history|weather|currency|largest city|climate|size} of $place{?|.|}',
    '{How|Why} {do|does|did|can|should|could} {a |the |people |you |we |I }{$noun |$plural |}$verb{| in $place| a $noun| so fast| at night}{?|}',
    '{Why|How|When|Where} {are|were} {the |}$plural {so |}{$adj|made|born|from}{| in $place}{?|}',
    '{Write|Compose|Give me|Create|Invent} {a|an|me a} {poem|story|song|joke|essay|letter|program|function|recipe|speech|text} {about|for|with|on} {a |the |}{$noun|$plural}{.|, please.|}',
    '{Translate|Say} {$noun|$adj $noun|hello|good morning|this sentence} {in|to|into} $language{.|, please.|}',
    '{Who|What} {invented|discovered|won|made|wrote|painted|killed|built|started} the {$noun|$adj $noun}{?| in $year?}',
    '{Is|Are|Was} {a |the |}$noun {really |very |}{$adj|an animal|a plant|a country}{| in $place}{?|}',
    '{When|Where} {was|is} the {first|last|next|biggest|best} $noun{| in $place}{?|}',
    '{I|We} {feel|am|are} {very |so |} $adj{ today|}{.| about the $noun.}',
    '{The|A|My|Your} $adj $noun {can|will|should} $verb{.|!| the $noun2.}',
    '{What will|Will} {the $noun|it|they|we} $verb {tomorrow|in $year|next year|again|soon}?',
    '$noun $verb $adj $noun2{.|?|}',
    '{Which|What} $noun is {the best|the oldest|better|$adj}{?| in $place?}',
    '$gib{ $gib2|}{ $noun|}{?|.|}',
    // Those that begin like what is answered.
    'How many {$plural|$plural|days|hours|people} {do I have|are there in $place|live in $place|are there|does a $noun have|can a $noun have|did $person have}{?|}',
    'How much {is|does|costs} {a|the|my} $noun{| cost| weigh}{| in $place}{?|}',
    'How {old|tall|far|big|long|fast|deep|heavy|hot|many years old} is {$place|$person|the $noun|a $noun|my $noun}{?|}',
    '{I want to|I would like to|I need to|Can I|Could you|Can you|Please|Help me} {$verb|$verb a $noun|buy a $noun|sell my $noun|book a $noun|find a $noun|go to $place|learn $language|call $person}{.|?|}',
    '{Please send me|Send me|I need|I want|Give me|Show me|Order} {a $adj $noun|$plural|a picture of $noun|money|the news|a $noun to $place}{.|, please.|}',
    '{Is|Are} {$person|$noun|$plural|$place} {positive or negative|real|alive|good for me|better than $noun2|bigger than $place2}{?|}',
    '{Repeat|Sort|Count|Reverse|Rate|Convert|Compute} {my life|the world|your thoughts|the stars|$place|the $noun|my $noun|all $plural}{.|!|}',
    'What is {the square root of|the logarithm of|the factorial of|$number percent of|the meaning of} $number{?|}',
    '{What time|Which day|What date|What year|What day} is it{| now| today| in $place}{?|}',
    '{My|The} $noun {is|was} $adj{.|, what should I do?|, help!|. What now?}',
    '{Should|Must|May|Can} {I|we|you|people} $verb {the $noun|a $noun|more $plural|in $place}{?|}',
    '{Do|Did|Does|Can|Could|Will|Would} {you|$person|the $noun|people|$plural} {$verb|like|know|see|love|remember|eat} {the $noun|$noun|$plural|$place|me}{?|}',
    '{What happens|What would happen} {if|when} {a $noun|the $noun|$plural|I|you} $verb{| in $place| the $noun2}{?|}',
    '{What|Which} {kind of|sort of|type of} $noun {is|was|has|likes} {the $noun2|$person|$place}{?|}',
    '{Compare|What is better,|Choose between} $noun {and|or|with} $noun2{?|.|}',
    '{Give|Tell} me {some advice|three facts|a tip|an idea|your opinion|news|something} {about|on|for} {the $noun|$plural|$place|$person}{.|, please.|}',
    '{Let us|Let me|We should|You must|They} {talk about|$verb|play with|think about} {the $noun|$plural|$noun}{.|!|}',
    '{Who|Which team|Which person} {has|won|plays|lost|leads|owns} {the $noun|most $plural|in $place|the $noun in $place}{?|}',
    '{He|She|It|They|Somebody|Nobody} {has|had|took|lost|saw|wants} {a|the|my} $adj $noun{.|!|}',
    '{Fix|Solve|Finish|Continue|Check|Correct} {this|my|the} {$noun|sentence|code|text|homework}{.|, please.|: $words}',
    '{$open $words|$words}{?|.|}',
    '{$open $words|$open $words|$words}{?|.|}',
    '{$open $words|$open $words|$words}{?|.|}',
  ],
  test: [
    '{Could you teach me|I wonder about|Please discuss|Any idea about} {the |a |}$noun{?|.}',
    '{In which year|For what reason} did {$person|$place|the $noun} $verb?',
    '{My $noun does not $verb|My $noun never $verb}, {what can I do|why}?',
    '{$person or $person2, who was more $adj?|Compare $place to $place2.}',
    '{I have never seen|I am afraid of|I dream about} {a $noun|$plural}{.|!}',
    '{Where do|When do|Since when do} $plural {$verb|come from}?',
  ],
};

const OPENERS = list(
  'What Why How When Where Who Which Is Are Do Does Did Can Could Should Would Will Tell Please My The I You',
);

/** Words as they come: what is asked is not the world's, whatever it is. */
function salad(draw: Draw): string {
  const count = draw.between(2, 8);
  return Array.from({ length: count }, () =>
    draw.chance(0.55)
      ? draw.pick(FUNCTION_WORDS)
      : draw.chance(0.1)
        ? invented(draw.random)
        : draw.pick(draw.pick(SALAD)),
  ).join(' ');
}
const SALAD = [NOUNS, NOUNS, PLURALS, VERBS, ADJECTIVES, PLACES, PEOPLE];

/** Nouns that no training prompt has. */
const HELD_OUT = NOUNS.filter((_, i) => i % 8 === 7);
const KNOWN = NOUNS.filter((_, i) => i % 8 !== 7);

function outside(draw: Draw): Drawn {
  if (draw.split === 'outside') return { prompt: draw.pick(QUESTIONS), answers: [REFUSAL], verbatim: true };
  const nouns = draw.split === 'test' || draw.split === 'names' ? HELD_OUT : KNOWN;
  const [noun, noun2] = draw.several(nouns, 2);
  const [person, person2] = draw.several(PEOPLE, 2);
  const [place, place2] = draw.several(PLACES, 2);
  const prompt = draw.say(OUTSIDE, {
    ...{ noun, noun2, person, person2, place, place2 },
    plural: draw.pick(PLURALS),
    verb: draw.pick(VERBS),
    adj: draw.pick(ADJECTIVES),
    language: draw.pick(LANGUAGES),
    year: draw.between(1200, 2030),
    number: draw.between(13, 999),
    gib: invented(draw.random),
    gib2: invented(draw.random),
    open: draw.pick(OPENERS),
    words: salad(draw),
  });
  return { prompt: capital(prompt), answers: [REFUSAL] };
}

export const OUTSIDE_INTENTS = { outside } satisfies Record<string, Intent>;

/** The patterns of training, for tests. */
export const OUTSIDE_PATTERNS = OUTSIDE.train;
