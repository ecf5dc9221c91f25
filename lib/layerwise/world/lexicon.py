"""The words of the world: lists that the generator combines. Data only; what they mean is decided in `entities`."""

WOMEN = """Ada Agnes Alma Anna Bella Beth Clara Cora Daisy Dora Edith Ella Emma Esther Eva Faye Flora Greta Hanna Hazel
Helen Ida Irene Iris Jane Joan Julia Kate Laura Lena Lily Lucy Mabel Maria Martha Mary Mina Nancy Nell Nora Olive Paula
Rita Rosa Ruth Sara Stella Susan Tess Vera Wanda Zoe""".split()
MEN = """Abel Adam Alan Albert Arthur Basil Ben Bruno Carl Cecil Conrad David Edgar Edwin Eric Ernest Felix Frank Fred
George Gus Harold Harry Henry Hugo Ian Ivan Jack James Jasper John Karl Leo Luke Mark Martin Max Miles Neil Noah Oscar
Otto Owen Paul Peter Ralph Robert Sam Simon Thomas Victor Walter""".split()
SURNAME_STEMS = """Ash Black Brad Brook Cald Carl Clay Cray Crom Dal Dray Dun Fair Fen Garth Gold Gray Had Hal Hart Hay
Hol Kirk Lang Marl Mor Nor Oak Pem Rad Red Rock Row Sel Shel Stan Thorn Wake Wal Win""".split()
SURNAME_ENDS = "den field ford ham ing ley low man more ridge son stead stone ton well wick wood worth".split()
TOWN_STEMS = """Alder Amber Barrow Birch Cold Crane Deer Eagle East Elm Fox Frost Glen Heron High Iron King Lake Long Maple
Mill North Otter Pine Queen Raven River Salt Silver South Spring Stone Summer Swan West White Winter Wolf""".split()
TOWN_ENDS = "bridge bury cliff dale gate haven mouth port shore side vale view".split()

PROFESSIONS = """actor baker banker barber botanist bricklayer butcher carpenter chemist clerk cook dancer dentist doctor
driver engineer farmer fisher gardener glazier hatter judge lawyer librarian locksmith mason miller miner musician nurse
painter pharmacist pilot plumber poet porter potter printer sailor sculptor singer surgeon tailor tanner teacher
translator weaver writer""".split()
SUBJECTS = """algebra anatomy astronomy biology botany chemistry drama economics ethics geography geology geometry grammar
history law logic medicine music optics philosophy physics poetry rhetoric statistics theology zoology""".split()
PETS = """badgers bees camels canaries cats crows dogs donkeys doves ducks falcons ferrets geese goats hens horses llamas
mice mules oxen parrots peacocks pigs ponies rabbits rams sheep snakes spiders swans toads turtles""".split()
EMPLOYER_NAMES = """Anchor Arrow Beacon Bell Castle Clover Compass Crown Dragon Drum Falcon Feather Flag Garden Globe Harp
Hammer Horn Key Ladder Lantern Lion Moon Mountain""".split()
EMPLOYER_KINDS = "Bank Brewery College Factory Hospital Library Museum Theatre".split()

CLASSES = {
    "bird": ("feathers", "flies"),
    "fish": ("scales", "swims"),
    "beetle": ("a shell", "crawls"),
    "moth": ("dust", "flutters"),
    "lizard": ("plates", "climbs"),
    "frog": ("smooth skin", "hops"),
    "mouse": ("fur", "runs"),
    "worm": ("rings", "burrows"),
}
HOMES = "caves cliffs forests hedges lakes marshes meadows rivers".split()
FOODS = "berries bark grass insects leaves mushrooms roots seeds".split()
COLOURS = "black blue brown gray green red white yellow".split()
TIMES = ["at dawn", "at dusk", "at night", "at noon", "in the morning", "in the rain", "in spring", "in winter"]
SPECIES_ONSETS = "b bl br d dr f fl g gl gr h j k kl kr l m n p pl pr r s sk sl sn st t tr v w z".split()
SPECIES_VOWELS = "a e i o u ai oo ee".split()
SPECIES_CODAS = "b d ff g k l ld lt m mp n nd nk nt p r rb rk rn sk st t v x zz".split()

# what happens to a thing of each material: the columns of OUTCOMES below
MATERIALS = """glass clay china ice wood paper straw cotton wool silk leather rubber wax iron tin copper gold stone marble
bone cork sugar salt bread""".split()
ACTIONS = {
    "dropped the {} on the stone floor": ("broke", "bounced", "was bent", "stayed whole"),
    "put the {} in the fire": ("melted", "burned", "cracked", "grew hot"),
    "left the {} in a bowl of water": ("sank", "floated", "dissolved", "got soaked"),
    "hit the {} with a hammer": ("shattered", "was flattened", "was dented", "did not change"),
    "held a magnet near the {}": ("moved", "did not move"),
    "left the {} outside in the winter": ("rusted", "rotted", "stayed the same", "cracked"),
    "cut the {} with a knife": ("came apart", "dulled the knife"),
    "touched the {} with a wire": ("carried the current", "stopped the current"),
}
# one digit per action, in the order of ACTIONS: the index of the outcome
OUTCOMES = {
    "glass": "02001211",
    "clay": "02001311",
    "china": "02001311",
    "ice": "00100201",
    "wood": "31131101",
    "paper": "31331101",
    "straw": "31131101",
    "cotton": "31331201",
    "wool": "31331201",
    "silk": "31331101",
    "leather": "31131101",
    "rubber": "10131201",
    "wax": "30111201",
    "iron": "33020010",
    "tin": "20011210",
    "copper": "23011210",
    "gold": "20011210",
    "stone": "33031211",
    "marble": "02001211",
    "bone": "33001201",
    "cork": "11131201",
    "sugar": "00201101",
    "salt": "03201201",
    "bread": "31231101",
}
ADJECTIVE = {"wood": "wooden", "wool": "woollen", "gold": "golden"}
THINGS = """anchor apron arrow axe bag ball barrel basin basket bat bead bell belt bench blanket block boat bottle bowl box
bracelet brick broom brush bucket button candle cap card carpet case chain chair charm chest coat coin comb cork crate cross
crown cube cup curtain cushion disc dish doll drum egg fan feather figure flute fork frame glove goblet handle hat helmet
hook horn idol jar jug key kite knob ladle lamp lid loop mask mat medal mirror model mug nail necklace needle net paddle pan
peg pen pendant pillar pin pipe plate plug pot puppet purse rack rattle ring rod roller rope saddle sail scarf screw seal
shield shoe shovel sieve spade spoon stamp statue stick stool strap string sword table tag tile token toy tray tub tube urn
vase vest wheel whistle""".split()
MAKERS = "Ashby Borden Corley Denby Elstow Fenwick".split()
USES = """carry water|cut bread|tie a knot|catch rain|keep warm|light the room|sweep the yard|dig a hole|drive a nail|open the
door|hold the soup|stir the paint|cover the bed|block the wind|hang a picture|call the dog|mark the page|close the gap|press
the flowers|roll the dough|weigh the flour|scare the crows|feed the hens|fix the roof|row the boat|shade the window|carry
wood|store the oil|polish the shoes|grind the pepper|strain the tea|clean the chimney|prop the gate|hold the papers|lift the
stone|guard the house|pay the miller|seal the letter|count the sheep|play a tune|decorate the hall|wrap the gift|measure the
cloth|plant the beans|shell the nuts|trap the mouse|ring in the day|honour the dead|comfort the child|win the game""".replace(
    "\n", " "
).split("|")

PLACES = """attic bakery barn bathroom bedroom cellar chapel church court dairy field forge garage garden hall harbour
hotel kitchen library market meadow mill museum office orchard palace park pantry school shed shop stable station street
studio tavern temple tower valley yard""".split()
BELONGINGS = """apple axe bag ball basket bell book bottle bowl box brush bucket cake candle coat coin comb cup doll drum flag
flute glove hammer hat jar key kite knife ladder lamp lantern letter map mirror mug needle newspaper pear pen pillow plate
pot purse ring rope saw scarf shoe spade spoon stick sword ticket towel toy umbrella vase watch whistle""".split()

GOODS = """apples beads beans biscuits books bottles bricks buttons candles cards cherries chestnuts coins cups eggs figs
flowers grapes keys lemons marbles melons muffins nails nuts onions oranges peaches pears pencils plums ribbons seeds shells
spoons stamps sticks stones tickets toys""".split()
CONTAINERS = "bags baskets boxes crates drawers jars rows sacks shelves trays".split()

# everyday scripts: a title (past tense) and its steps in order; steps shared between scripts are on purpose,
# so that the last step alone does not tell which script is going on
SCRIPTS = {
    "made tea": "washed hands|filled the kettle|lit the stove|boiled the water|warmed the pot|added the leaves|poured the tea|sat down",
    "made soup": "washed hands|peeled the onions|lit the stove|boiled the water|added the salt|stirred the pot|filled the bowls|sat down",
    "baked bread": "washed hands|weighed the flour|added the yeast|kneaded the dough|waited an hour|heated the oven|shaped the loaf|baked the loaf|cleaned the table",
    "baked a cake": "washed hands|weighed the flour|broke the eggs|stirred the batter|heated the oven|greased the tin|baked the cake|waited an hour|cut the cake",
    "fried eggs": "lit the stove|greased the pan|broke the eggs|added the salt|turned the eggs|filled the plates|sat down",
    "washed the dishes": "cleared the table|filled the sink|added the soap|scrubbed the plates|rinsed the plates|dried the plates|closed the cupboard",
    "washed the dog": "called the dog|filled the tub|added the soap|scrubbed the dog|rinsed the dog|dried the dog|emptied the tub",
    "did the laundry": "sorted the clothes|filled the tub|added the soap|scrubbed the clothes|rinsed the clothes|hung the clothes|folded the clothes",
    "ironed a shirt": "sorted the clothes|heated the iron|set up the board|spread the shirt|pressed the collar|pressed the sleeves|folded the clothes",
    "took the train": "packed a bag|locked the door|walked to the station|bought a ticket|found the platform|boarded the train|found a seat|got off",
    "took the bus": "packed a bag|locked the door|walked to the stop|waited in line|bought a ticket|found a seat|rang the bell|got off",
    "flew abroad": "packed a bag|locked the door|drove to the airport|showed the passport|waited in line|boarded the plane|found a seat|landed|got off",
    "went to school": "got out of bed|washed hands|ate breakfast|packed a bag|walked to the school|greeted the teacher|opened the book|did the sums",
    "went to work": "got out of bed|took a shower|ate breakfast|locked the door|drove to the office|greeted the boss|read the letters|wrote a report",
    "went shopping": "made a list|took the basket|walked to the shop|filled the basket|waited in line|paid the bill|carried it home|filled the cupboard",
    "ate at an inn": "walked to the inn|found a seat|read the menu|ordered a meal|waited an hour|ate the meal|paid the bill|left a tip",
    "saw a play": "bought a ticket|walked to the theatre|showed the ticket|found a seat|watched the play|clapped|walked home",
    "borrowed a book": "walked to the library|searched the shelf|took the book|showed the card|waited in line|carried it home|read the book",
    "posted a letter": "took some paper|wrote a letter|folded the letter|sealed the letter|bought a stamp|walked to the post|mailed the letter",
    "painted a wall": "moved the chairs|covered the floor|opened the tin|stirred the paint|dipped the brush|painted the wall|waited an hour|cleaned the brush",
    "painted a picture": "set up the easel|opened the tin|dipped the brush|drew the outline|painted the sky|painted the trees|signed the picture|cleaned the brush",
    "planted a tree": "took the spade|chose a spot|dug a hole|placed the tree|filled the hole|watered the tree|cleaned the spade",
    "sowed beans": "took the spade|turned the soil|drew a line|dropped the seeds|covered the seeds|watered the soil|put up a sign",
    "mowed the lawn": "opened the shed|took the mower|cut the grass|raked the grass|emptied the mower|closed the shed|took a shower",
    "fixed the bike": "opened the shed|turned the bike over|took off the wheel|found the hole|glued the patch|put back the wheel|pumped the tyre|closed the shed",
    "washed the car": "parked the car|filled the bucket|added the soap|scrubbed the car|rinsed the car|dried the car|emptied the bucket",
    "lit a fire": "gathered the wood|cleared the ashes|stacked the wood|crumpled the paper|struck a match|lit the paper|warmed the hands",
    "went camping": "packed a bag|drove to the lake|chose a spot|put up the tent|gathered the wood|struck a match|cooked the meal|went to sleep",
    "went fishing": "dug for worms|walked to the lake|chose a spot|baited the hook|cast the line|waited an hour|pulled the fish|carried it home",
    "milked the cow": "got out of bed|took the bucket|opened the barn|fed the cow|washed hands|milked the cow|carried the milk|closed the barn",
    "saddled a horse": "opened the barn|brushed the horse|spread the blanket|lifted the saddle|tied the strap|put on the bridle|rode away",
    "saw the doctor": "made a call|walked to the doctor|waited in line|sat down|showed the tongue|took the medicine|paid the bill|walked home",
    "got a haircut": "walked to the barber|waited in line|sat down|chose a style|closed the eyes|looked in the mirror|paid the bill|walked home",
    "went to bed": "ate supper|took a shower|brushed the teeth|put on pyjamas|set the clock|read the book|put out the light|went to sleep",
    "wrapped a gift": "chose a gift|took some paper|cut the paper|folded the paper|tied the ribbon|wrote a card|gave the gift",
    "sewed a button": "found the button|chose a thread|threaded the needle|placed the button|pulled the thread|tied a knot|cut the thread",
}  # fmt: skip
