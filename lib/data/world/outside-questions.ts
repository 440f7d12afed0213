// Ordinary questions and requests in English, written by hand, which the world knows nothing about. None is a sentence of
// the patterns that training declines (tested), so they measure how far declining carries.
export const QUESTIONS: readonly string[] = `
Why is the sky blue during the day and red in the evening?
How do I get a coffee stain out of a white shirt?
What should I cook for six guests on a Friday night?
Is it safe to drink tap water in Lisbon?
How long does it take to fly from London to New York?
Who won the football world cup in 2014?
What's the difference between a crocodile and an alligator?
Can you recommend a good book for a long train ride?
My laptop keeps freezing, what could be the cause?
How many bones does an adult human have?
What year did the Second World War end?
Should I bring an umbrella tomorrow?
How do vaccines protect us against disease?
Who painted the ceiling of the Sistine Chapel?
What's a polite way to decline an invitation?
How do I boil an egg so that the yolk stays soft?
Which planet in our solar system has the most moons?
Why do onions make people cry when they are cut?
What does a software engineer do all day?
Could you write a haiku about autumn leaves?
How can I fall asleep faster at night?
Is a tomato a fruit or a vegetable?
What are the symptoms of the flu?
How far away is the moon from the earth?
Where did the tradition of Christmas trees come from?
I forgot my password, how do I reset it?
What's the fastest animal on land?
How do airplanes stay up in the air?
Who was the first woman to win a Nobel Prize?
Why does bread rise in the oven?
What languages are spoken in Switzerland?
Give me five synonyms for the word happy.
How do I tie a bow tie?
Is there life on other planets?
What's the weather going to be like this weekend?
How much sleep do teenagers need?
Who is the current prime minister of Canada?
How does a microwave heat up food?
What makes a good leader?
How do I change a flat tyre?
What's the plot of Romeo and Juliet?
Why did the dinosaurs die out?
How do you say thank you in Japanese?
What's the best time of year to visit Iceland?
How do I stop my cat from scratching the sofa?
What are some good exercises for back pain?
Who discovered penicillin and when?
How tall is the Eiffel Tower in metres?
Is coffee bad for your heart?
What would you name a puppy with three legs?
How do rainbows form after the rain?
Which country has the longest coastline?
Please explain photosynthesis to a child.
What's the tallest building on earth right now?
How do I write a cover letter?
Are sharks older than trees?
When was the printing press invented?
Why do cats purr when you stroke them?
What happens to the body when we fast for a day?
How do I get from the airport to the city centre?
What's the meaning of the word serendipity?
Who composed the music for Star Wars?
Can I freeze cooked rice?
What causes the seasons of the year?
How can I improve my handwriting?
Is it rude to tip in Japan?
Which vitamins are found in carrots?
How many players are on a basketball team?
What do you think about modern art?
Could a human survive on Mars without a suit?
How do I take care of a cactus?
What's the capital of Australia?
How did the Romans build their roads?
Who wrote Pride and Prejudice?
Why do leaves change colour in autumn?
What are the rules of chess?
How do I remove a splinter from my finger?
What's the most spoken language in the world?
How does the stock market work?
Can you help me with my history homework?
What should I wear to a job interview?
Why is the ocean salty but rivers are not?
How do bees make honey?
Is it going to snow in Denver this week?
What's a good name for a rock band?
How long do elephants live?
Where can I watch old black and white movies?
How do I ask my boss for more money?
What are black holes made of?
Which instrument is the easiest to learn?
Why do we yawn when others yawn?
How can I learn to juggle?
What's the population of Tokyo?
Who lives at the North Pole?
How do I know if an avocado is ripe?
What's the longest river in Europe?
How did people tell time before clocks?
What's the secret of a happy marriage?
How do I clean a cast iron pan?
Which came first, the chicken or the egg?
How is paper made from wood?
What did people eat in the Middle Ages?
Who is your favourite painter?
How do I start a vegetable garden?
What is quantum physics in simple words?
Why can't we tickle ourselves?
How do you make pancakes from scratch?
What's the boiling point of water on a mountain?
How many stars can we see with the naked eye?
Do fish sleep with their eyes open?
What are the health benefits of green tea?
Tell me something interesting about octopuses.
How do I calm a crying baby?
What's the oldest university in the world?
How do I unclog a kitchen sink?
What movie should we watch tonight?
Who was the last tsar of Russia?
How do computers understand code?
What's the right way to hold chopsticks?
How big is the universe, roughly?
Is pluto a planet or not?
How do I make new friends in a new city?
What are your thoughts on climate change?
Why do some people sleepwalk?
What's the difference between weather and climate?
Can you sing me a lullaby?
How do I get rid of ants in the kitchen?
Which fruits contain the most sugar?
What's the story behind the Trojan horse?
How do glasses help us to see better?
Why does ice float on water?
What is the best way to learn Spanish?
Who was the youngest president of the United States?
How do solar panels turn light into power?
What's a healthy breakfast that takes five minutes?
Where does the wind come from?
How do I install a printer on my computer?
What's the most poisonous animal of all?
Why do we have leap years?
Can you explain the offside rule?
What are the main ingredients of a curry?
How do I remove snow from my car without scratching it?
What happened on the 20th of July in 1969?
How many people live on our planet today?
Is chocolate dangerous for dogs?
How do I choose the right mattress?
Who invented the telephone, Bell or Meucci?
What's the best cure for a hangover?
How do birds know where to fly in winter?
Why do stars twinkle but planets do not?
What's the name of the longest bone in the body?
How do I fix a leaking tap?
Which gas do plants breathe in?
What's the legal drinking age in Germany?
What's the point of wisdom teeth?
Did Vikings really wear horns on their helmets?
How do I find out who called me?
What are the signs of a heart attack?
How can I be more confident when I speak in public?
Who are the main characters in Harry Potter?
What's the smallest country in the world?
Why do mosquitoes bite some people more than others?
How do I save money on my electricity bill?
What is the origin of the word sandwich?
How do I draw a realistic eye?
Which metal is liquid at room temperature?
Can I use butter instead of oil in a cake?
How was the Grand Canyon formed?
What are good questions for a first date?
How do submarines dive and come up again?
Why was the Berlin Wall built?
How do I backup the photos on my phone?
What's the average height of a giraffe?
Who gives out the Oscars?
What's the difference between jam and marmalade?
How does gravity bend light?
Is it possible to travel back in time?
What's the easiest programming language for beginners?
How do I plan a birthday party for a ten year old?
Why do men have nipples?
What was life like in ancient Egypt?
How much water should I drink every day?
Which animals hibernate in winter?
What do the colours of the French flag stand for?
How do I wash a wool sweater?
Who built Stonehenge and why?
What's the best way to store potatoes?
How do touch screens work?
Are there any poisonous snakes in Ireland?
What's the shortest war in history?
How do I tell a good wine from a bad one?
Why is Venus hotter than Mercury?
How do I make my own candles at home?
What's the role of the heart in the human body?
Who was Alexander Hamilton?
What are the seven wonders of the ancient world?
How do I create a strong password?
Can you describe the taste of salt?
What's the highest mountain in Africa?
How is cheese made?
Why do we shake hands when we meet?
What does it feel like to be in space?
How do I get a passport for my child?
Which continent is the driest?
What's a good remedy for hiccups?
How do spiders spin their webs?
What was the name of the first dog in space?
How do I make a paper airplane that flies far?
Why are there 24 hours in a day?
How do I deal with a noisy neighbour?
What's the difference between a virus and a bacterium?
Who sang the song Yesterday?
How do I convert a PDF to a Word document?
What's the best bait for catching trout?
How do I learn to play the guitar by myself?
What's inside the core of the earth?
How do I know whether I need glasses?
What is the currency of Turkey called?
How do hybrid cars save fuel?
Is lightning hotter than the surface of the sun?
Who rules the United Kingdom at the moment?
How do you solve a Rubik's cube?
What's the healthiest kind of oil for frying?
How deep is the deepest part of the sea?
Why do we need sleep at all?
What do koalas eat all day long?
How do I get my toddler to eat vegetables?
What's the formula for the area of a circle?
How do noise cancelling headphones work?
When does daylight saving time begin?
What's the best way to remember names?
Which sea is so salty that you can float in it?
What's the purpose of an appendix?
How do I teach my dog to sit?
Who founded the city of Rome according to the legend?
What are the colours of the rainbow in order?
How do I write a poem that rhymes?
Why is yawning contagious?
What's the most expensive painting ever sold?
How can I lower my blood pressure?
What's the difference between a lawyer and a judge?
How long can camels go without water?
Where were the first Olympic Games held?
How do I iron a shirt without burning it?
What are some tips for travelling with children?
How do earthquakes start?
Can you tell me a bedtime story about a rabbit?
What's the chemical symbol for gold?
How do I get chewing gum out of hair?
Why do zebras have stripes?
How do scientists know how old a fossil is?
What's the official religion of Thailand?
How do I sharpen a kitchen knife?
Who was the first person to climb Mount Everest?
What makes popcorn pop?
How do I set up a wireless network at home?
What's the best diet for losing weight?
Why do dogs wag their tails?
How many languages does the average person in Europe speak?
What should I do if I see a bear?
How do I prepare for an exam in one night?
What's the tallest waterfall on the planet?
How are diamonds formed under the ground?
Who plays the Joker in the latest Batman film?
What's a synonym for beautiful?
How do I ask someone out?
Why is it colder at the top of a mountain?
What are the ingredients of toothpaste?
How does the internet reach remote islands?
Can you give me directions to the nearest bakery?
How do I get better at maths?
What does the constitution say about free speech?
How do I grow tomatoes on a balcony?
What's the difference between a cold and an allergy?
How do whales communicate with each other?
Which artist cut off his own ear?
How do I make sourdough bread without yeast?
What's the history of the bicycle?
Why does my knee hurt after running?
How do I apply for a scholarship abroad?
What's the best age to learn a second language?
How does anaesthesia work?
Who is the patron saint of Ireland?
What's the distance between Paris and Rome by car?
How do I recover a deleted file?
Why do we dream and forget about it?
How do I take better photos with my phone?
What's the theory of relativity about?
How many calories are in a banana?
Can cats really land on their feet every time?
What do you call a group of crows?
How do I build a treehouse for my kids?
Why did Napoleon lose at Waterloo?
How do I clean my glasses without leaving marks?
What's the best way to cook a steak?
How do I become more patient with my children?
What are the advantages of working from home?
Which bird lays the largest eggs?
How do I choose a good melon at the market?
What's the sound of one hand clapping?
How do elevators know which floor to stop at?
Who wrote the national anthem of the Netherlands?
What's the difference between love and friendship?
How do I remove a virus from my computer?
How do I get a mortgage for a small house?
What's the warmest month in Athens?
How do I tell my parents that I failed?
Do trees talk to each other through their roots?
What is the safest seat on an airplane?
How do I start a small business with little money?
What does the Mona Lisa smile about?
Why do we say bless you when someone sneezes?
How do I make ice cream without a machine?
What's the deadliest disease in human history?
How does a compass know where north is?
Which Roman emperor made his horse a senator?
How do I train my memory?
What's the proper way to eat spaghetti?
How do I knit a scarf for the winter?
Who was the fastest man of the 1936 Olympics?
What is artificial intelligence good for?
How do I keep my plants alive while I am on holiday?
Why do old books smell so nice?
What's the difference between a sea and an ocean?
How do I write code that is easy to read?
What are the duties of a mayor?
How do I get my driving licence in France?
Is it healthy to skip breakfast?
What's the best country to live in as a student?
How do I find a cheap flight to Bali?
Why is the Dead Sea called dead?
How do I make a snowman that lasts?
What happens in the last episode of Friends?
How do I hang a picture straight?
Which kings of England were called George?
What's the best joke you know?
How do I know if someone is lying to me?
What is the speed of sound in water?
How do I make my hair grow faster?
Why do we need to pay taxes?
How do caterpillars turn into butterflies?
What's the best camera for a beginner?
Who was Joan of Arc and what did she do?
How do I pack a suitcase without wrinkles?
What's the weight of a blue whale?
How do I get rid of a headache without medicine?
What are the first signs of spring?
How can I reduce plastic waste at home?
What do astronauts eat on the space station?
How do I make a budget for a family of four?
Who is buried in the great pyramid?
What's the difference between a tortoise and a turtle?
How do I say goodbye to a dying friend?
Where is the best place to see the northern lights?
What's the meaning behind the song Imagine?
How do I stop biting my nails?
Why are school buses yellow in America?
How do I treat a bee sting?
What is the hardest language to learn for English speakers?
How do I become a morning person?
What's the oldest living tree called?
Can you suggest a gift for my grandmother?
What's the best way to clean windows?
How do I tell if milk has gone off?
Why do some songs get stuck in our heads?
How do I make a website for my bakery?
What's the national dish of Hungary?
How long should I boil pasta?
Which president is on the five dollar bill?
What's the purpose of art?
How do I paint a room without making a mess?
Why do we have different blood types?
How do I meet a deadline when I am behind?
What was the first movie with sound?
How do I know which size of shoes to buy online?
What are the rules for carrying liquids on a plane?
How does a refrigerator keep food cold?
Who were the Beatles?
What's the best way to apologise to a friend?
How do I deal with jet lag?
How do I fold a fitted sheet?
What's the largest desert that is not hot?
How do I make my own soap?
What is it like to live in a lighthouse?
How do ants find their way home?
Is honey better for you than sugar?
What's the best exercise to lose belly fat?
How do I register to vote?
Why does metal feel colder than wood?
How do I take screenshots on a tablet?
What's the most beautiful beach in Italy?
How do I read music notes?
Which side of the road do they drive on in Malta?
What are common mistakes in English grammar?
How do I make a fire without matches?
What's the difference between a novel and a short story?
How do I help a friend who is depressed?
Why do we blink so often?
How do I keep bread fresh for longer?
What's the record for holding your breath?
How do I get more followers on social media?
Who invented chocolate chip cookies?
What's the best season for planting roses?
How do I cancel my gym membership?
What are the risks of eating raw fish?
How does a lock on a canal work?
Why is Friday the thirteenth unlucky?
How do I negotiate the price of a used car?
What's the name of the dog in Peter Pan?
How do I explain death to a small child?
What is the minimum wage in Spain?
How do I make a good cup of tea?
Where do polar bears live?
What's the best way to wake up early?
How do I get red wine out of a carpet?
Why do computers use only zeros and ones?
How do I learn to swim as an adult?
What's the difference between a comet and a meteor?
How do I organise my closet?
What do you do when you are bored?
How do I make my living room look bigger?
Which foods should I avoid during pregnancy?
What's the most popular sport in Brazil?
How do I write a wedding speech?
Why are some eggs brown and others white?
How do I get my money back from a scammer?
What's the best way to peel garlic?
How do I know if my tyres are worn out?
What is the plural of mouse?
How do I make a good first impression?
Where was pizza invented?
What's the difference between a debit card and a credit card?
How do I stretch before running?
How do I keep my house cool in summer?
What's the best treatment for acne?
How do I find my family tree?
Who killed Julius Caesar?
What's the smartest animal after humans?
How do I make friends with my neighbour's cat?
What are some fun facts about Finland?
How does a thermometer measure temperature?
Why is gold so valuable?
How do I get rid of the smell of paint?
What's the best way to travel through Vietnam?
How do I install solar panels on my roof?
What is the first line of Moby Dick?
How do I tell the difference between a mushroom that is safe and one that is not?
When will the next solar eclipse be visible in Europe?
What's the best way to teach a child to read?
How do I write my will?
Why do roosters crow in the morning?
How do I learn to whistle with my fingers?
What's your opinion on pineapple on pizza?
How do I lose an accent?
What was the longest reign of any king?
How do I make cold brew coffee at home?
Do plants grow faster with music?
What's the best way to clean silver?
How do I keep deer out of my garden?
What's the temperature on the surface of the sun?
How do I make a podcast about local history?
Please give me a summary of the French Revolution.
Could you proofread the following letter for me?
I cannot decide between a cat and a dog, any advice?
My girlfriend left me and I feel terrible about it.
Tell me what you would do with a million dollars.
Let's play a game of twenty questions.
Imagine you are a pirate and tell me about your ship.
Draw a picture of a house with a red roof.
Turn on the lights in the bedroom.
Set an alarm for half past six tomorrow morning.
Play some relaxing jazz music.
Remind me to call my mother on Sunday evening.
Show me the fastest way to the train station.
Read me the news of today, please.
Make up a rhyme with the word orange.
Find a vegetarian restaurant that is open late.
Book two tickets for the opera on Saturday.
Recommend three novels by Russian authors.
Explain to me how compound interest works.
Guess what I am thinking about right now.
Teach me a magic trick with cards.
List all presidents of Brazil since 1950.
Help me to write an email to my landlord.
Act as a travel guide for the city of Kyoto.
Summarise the plot of the Odyssey in two lines.
Spell the word necessary backwards for me.
Prove that the square root of two is irrational.
Write a python script that downloads a web page.
Debug this function, it never returns anything.
I would love to visit Patagonia one day.
My grandmother used to bake the best apple pie.
It has been raining for three weeks now.
Nobody understands me at school.
Yesterday I saw a fox in the middle of the street.
I think that my phone is listening to me.
We are getting married in September.
My car makes a funny noise when I brake.
There is a spider in my bathtub.
I had the strangest dream last night.
The government should lower taxes for families.
`
  .trim()
  .split('\n');
