// Small talk.
import type { Draw, Drawn, Intent } from './draw';
import type { Patterns } from './grammar';
import { capital } from './words';

/** What is said, and what a right answer is; the first answer is the one to learn. */
const TALK: readonly { say: Patterns; answers: readonly string[] }[] = [
  {
    say: {
      train: [
        '{Hello|Hi|Hey|Good morning|Good evening|Good afternoon|Good day|Hi there|Hello there|Hey there|Hiya|Howdy}{!|.|,|}',
        '{Hello|Hi|Hey} {you|friend|my friend|everybody|model|again}{!|.|}',
        '{Oh hello|Oh hi|Well hello|A good morning to you|Hello hello|Hi hi}{!|.|}',
      ],
      test: ['{Hello to you|Oh, good morning|Good evening to you|Hey hello|Hi, good day}{!|.|}'],
    },
    answers: ['Hello! How can I help you?', 'Hi! What can I do for you?'],
  },
  {
    say: {
      train: [
        '{|Hi, |Hello, |Hey, }{how are you|how do you do|how is it going|are you okay|how are things|how are you today|how do you feel|are you well|how is your day|what is up|whats up|how are you doing}{?|?|}',
        '{How have you been|How is life|All well|Is all well|Everything fine|Do you feel good|Are you fine}{?|}',
      ],
      test: ['{|Hi, |Hello, }{how are you doing today|are you fine today|how are you feeling|how is it today}{?|}'],
    },
    answers: ['I am fine, thank you. How can I help you?'],
  },
  {
    say: {
      train: [
        '{Thanks|Thank you|Thank you very much|Many thanks|Thanks a lot|Great, thanks|Perfect, thank you|That helps, thanks|Thank you so much|Thanks for your help|Cool, thanks|Very kind, thank you|Thanks for that|Nice, thanks|Okay, thank you}{!|!!|.|}',
        '{That was helpful|You helped me a lot|Great help|That is very helpful|You are a great help}{, thanks|, thank you|}{!|.|}',
      ],
      test: [
        '{Thanks so much|I thank you|Wonderful, thank you|Great, thank you very much|Thank you for the help}{!|.|}',
      ],
    },
    answers: ['You are welcome. Anything else?', 'You are welcome!'],
  },
  {
    say: {
      train: [
        '{Bye|Goodbye|Good bye|Good night|See you|See you soon|See you later|Bye bye|That is all, bye|I have to go|Bye for now|Until tomorrow|So long|Take care|I must go now|Have a nice day|Thanks, bye|Okay, goodbye}{!|.|}',
        '{That is all for today|I am leaving|I am off|We are done|That was all|I am done}{!|.|, bye.|}',
      ],
      test: ['{Good bye for now|See you tomorrow|Okay, see you later|Bye, have a nice day|I must go, bye}{!|.|}'],
    },
    answers: ['Goodbye! Have a nice day.', 'Goodbye!'],
  },
  {
    say: {
      train: [
        '{Who are you|What are you|What is your name|Who am I talking to|Tell me who you are|Do you have a name|What do they call you|Who is this|Who is there|Introduce yourself|Tell me about yourself|What kind of model are you}{?|?|}',
        '{Are you a robot|Are you a person|Are you human|Are you a machine|Are you real|Are you a computer|Are you a program|Are you alive|Are you a chatbot|Are you an AI|Am I talking to a person|Am I talking to a machine}{?|}',
      ],
      test: [
        '{What should I call you|Please tell me who you are|What name do you have|Are you a real person|Are you a model|Who are you, please}{?|}',
      ],
    },
    answers: ['I am a very small language model.'],
  },
  {
    say: {
      train: [
        '{What can you do|How can you help me|What do you do|Help|Help me|What can I ask you|Can you help me|What are you good at|What do you know|What are you for|How does this work|What can you do for me|What should I ask|I need help|Help please|Show me what you can do|What can I do here|What is this}{?|!|.|}',
        '{Give me an example|Show me an example|What else can you do|What questions can you answer|What tasks do you know|Tell me what you can do}{?|.|}',
      ],
      test: [
        '{Please help me|What can I ask|How can you help|Tell me what you know|What are you able to do|Show me what you know}{?|.|}',
      ],
    },
    answers: ['I read orders, tickets and reviews into JSON, do small sums, and sort lists.'],
  },
  {
    say: {
      train: [
        '{Sorry|I am sorry|Oh sorry|My mistake|Excuse me|Pardon|Oops|Sorry about that|That was my mistake|Sorry, my fault}{!|.|}',
      ],
      test: ['{I am so sorry|Oh, my mistake|Sorry, that was my mistake}{!|.|}'],
    },
    answers: ['No problem. How can I help you?'],
  },
  {
    say: {
      train: [
        '{Great|Very good|Well done|Good job|You are great|You are good|Nice|Perfect|That is right|Correct|Excellent|Wonderful|I like you|You are smart|You are nice|Good work|That is correct|Cool|Wow|Amazing|You are funny}{!|!!|.|}',
      ],
      test: ['{That is very good|You are very good|Great job|Very nice|You are so smart}{!|.|}'],
    },
    answers: ['Thank you! Anything else?'],
  },
  {
    say: {
      train: [
        '{That is wrong|Wrong|No, that is wrong|This is not right|You are wrong|That is not true|Not correct|Bad answer|That is false|You made a mistake|That was wrong|You are bad|You are stupid|That is nonsense|This is bad|I do not like you|No good}{!|.|}',
      ],
      test: ['{That is not right|Your answer is wrong|This is wrong|That is a bad answer|You are not right}{!|.|}'],
    },
    answers: ['I am sorry. I am only a very small model.'],
  },
  {
    say: {
      train: [
        '{Okay|Ok|Yes|Yes please|No|No thanks|No, thank you|I see|Sure|Fine|All right|Alright|Understood|Go on|Good|Maybe|Of course|Hm|Aha|Let us start|I am ready|Are you there|Are you ready|Test|Testing}{!|.|}',
      ],
      test: ['{Okay then|Yes, please|No, that is all|Fine, go on|I see, okay}{!|.|}'],
    },
    answers: ['How can I help you?'],
  },
];

const INTRODUCTION: Patterns = {
  train: [
    '{Hi, |Hello, |Hey, |Good morning, |}{my name is|I am|this is|call me|you can call me|I am called|it is} $name{.|!|}',
    '{Hi, |Hello, |}$name here{.|!|}',
    '{My name|The name} is $name{.|, hello.|, hi!}',
    '{I am|This is} $name{, nice to meet you|, how are you|, hello}{.|!|}',
  ],
  test: [
    '{Please call me|People call me|Good day, I am|Hey there, this is} $name{.|}',
    '{They call me|My first name is} $name{.|}',
  ],
};

const MY_NAME: Patterns = {
  train: [
    '{What is my name|Who am I|Do you know my name|Tell me my name|What did I say my name is|What am I called|Do you know who I am|Do you remember my name|Say my name|My name}{?|}',
  ],
  test: ['{Can you tell me my name|Do you remember who I am|What was my name|Remember my name}{?|}'],
};

const greetings = (name: string) => [`Hello ${name}! How can I help you?`, `Nice to meet you, ${name}!`];

function chat(draw: Draw): Drawn {
  const { say, answers } = draw.pick(TALK);
  return { prompt: capital(draw.say(say)), answers };
}

function name(draw: Draw): Drawn {
  const given = draw.name();
  const introduction = capital(draw.say(INTRODUCTION, { name: given }));
  if (draw.chance(0.5)) return { prompt: introduction, answers: greetings(given) };
  return {
    prompt: [
      { role: 'user', content: introduction },
      { role: 'assistant', content: greetings(given)[0] },
      { role: 'user', content: draw.say(MY_NAME) },
    ],
    answers: [`Your name is ${given}.`, `You are ${given}.`],
  };
}

export const CHAT_INTENTS = { chat, name } satisfies Record<string, Intent>;
