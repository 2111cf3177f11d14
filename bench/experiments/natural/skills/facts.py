"""Skills about chemical elements, units of measurement, landmarks and makers."""

from __future__ import annotations

from functools import cache

from dnd_fast.bench.experiments.natural.skills.places import grouped
from dnd_fast.bench.experiments.natural.skills.skill import Skill, lines

ELEMENTS = """
    hydrogen H helium He lithium Li beryllium Be boron B carbon C nitrogen N oxygen O fluorine F
    neon Ne sodium Na magnesium Mg aluminum Al silicon Si phosphorus P sulfur S chlorine Cl
    argon Ar potassium K calcium Ca scandium Sc titanium Ti vanadium V chromium Cr manganese Mn
    iron Fe cobalt Co nickel Ni copper Cu zinc Zn gallium Ga germanium Ge arsenic As selenium Se
    bromine Br krypton Kr rubidium Rb strontium Sr yttrium Y zirconium Zr niobium Nb molybdenum Mo
    technetium Tc ruthenium Ru rhodium Rh palladium Pd silver Ag cadmium Cd indium In tin Sn
    antimony Sb tellurium Te iodine I xenon Xe cesium Cs barium Ba lanthanum La cerium Ce
    praseodymium Pr neodymium Nd promethium Pm samarium Sm europium Eu gadolinium Gd terbium Tb
    dysprosium Dy holmium Ho erbium Er thulium Tm ytterbium Yb lutetium Lu hafnium Hf tantalum Ta
    tungsten W rhenium Re osmium Os iridium Ir platinum Pt gold Au mercury Hg thallium Tl lead Pb
    bismuth Bi polonium Po astatine At radon Rn francium Fr radium Ra actinium Ac thorium Th
    uranium U neptunium Np plutonium Pu americium Am curium Cm einsteinium Es fermium Fm
"""
PREFIXES = {"kilo": "k", "mega": "M", "giga": "G", "tera": "T", "milli": "m", "nano": "n"}
UNITS = {
    "meter": "m",
    "gram": "g",
    "second": "s",
    "watt": "W",
    "volt": "V",
    "ampere": "A",
    "joule": "J",
    "newton": "N",
    "pascal": "Pa",
    "hertz": "Hz",
    "farad": "F",
    "tesla": "T",
    "coulomb": "C",
}
LANDMARKS = """
    France: the Eiffel Tower, Notre-Dame, the Louvre, Versailles, Mont Saint-Michel
    Italy: the Colosseum, the Leaning Tower of Pisa, Pompeii, Mount Vesuvius, the Trevi Fountain
    United Kingdom: Big Ben, Stonehenge, Buckingham Palace, the Tower of London
    United States: the Statue of Liberty, the Grand Canyon, Mount Rushmore, the Golden Gate Bridge,
        the White House, Yellowstone, Times Square, Hollywood, the Empire State Building
    Germany: the Brandenburg Gate, Neuschwanstein Castle, the Reichstag, the Black Forest
    Spain: the Sagrada Familia, the Alhambra, the Prado
    Greece: the Acropolis, the Parthenon, Mount Olympus, Delphi
    Egypt: the Great Sphinx, the Valley of the Kings, Abu Simbel, the Karnak temple
    China: the Great Wall, the Forbidden City, Tiananmen Square, the Terracotta Army
    Japan: Mount Fuji, the Tokyo Tower, the Kinkaku-ji temple
    India: the Taj Mahal, the Red Fort, the Golden Temple
    Australia: the Sydney Opera House, Uluru, Bondi Beach
    Russia: the Kremlin, Red Square, Lake Baikal, the Hermitage
    Brazil: Copacabana, the Maracana stadium, the Sugarloaf
    Peru: Machu Picchu, the Nazca Lines
    Mexico: Chichen Itza, Teotihuacan
    Cambodia: Angkor Wat
    Jordan: Petra
    Turkey: the Hagia Sophia, the Blue Mosque, Cappadocia
    United Arab Emirates: the Burj Khalifa, the Palm Jumeirah
    Netherlands: the Anne Frank House, the Rijksmuseum
    Malaysia: the Petronas Towers
    Tanzania: Mount Kilimanjaro, the Serengeti
    Chile: Easter Island, Torres del Paine
    Denmark: the Little Mermaid statue, Legoland Billund
    Austria: Schonbrunn Palace
    Canada: the CN Tower, Banff
    Indonesia: Borobudur
"""
PRODUCTS = """
    Apple: the iPhone, the iPad, the MacBook, the iPod, AirPods
    Microsoft: Windows, the Xbox, Excel, PowerPoint, Azure
    Google: Android, Gmail, Chrome, the Pixel phone
    Sony: the PlayStation, the Walkman
    Nintendo: the Game Boy, the Wii, the GameCube
    Amazon: the Kindle, Alexa
    Toyota: the Corolla, the Prius, the Camry, the Yaris
    Ford: the Mustang, the Fiesta, the F-150, the Model T
    Honda: the Civic, the Accord
    Volkswagen: the Golf, the Passat, the Polo, the Jetta
    Tesla: the Model S, the Cybertruck, the Powerwall
    Nissan: the Altima, the Leaf, the Micra
    Chevrolet: the Corvette, the Camaro, the Impala
    Porsche: the 911, the Cayenne
    Ferrari: the Testarossa, the Enzo
    Fiat: the Panda, the Punto
    Renault: the Clio, the Twingo
    Boeing: the 747, the Dreamliner
    Airbus: the A320, the A380
    Adobe: Photoshop, Acrobat, Illustrator
    Samsung: the Galaxy phone
    Intel: the Pentium, the Xeon
    Mattel: Barbie, Hot Wheels
    Nike: Air Jordan
    Canon: the PowerShot, the PIXMA
    Nikon: the Coolpix
"""


@cache
def elements() -> dict[str, str]:
    """Map names of chemical elements to their symbols."""
    entries = ELEMENTS.split()
    return dict(zip(entries[::2], entries[1::2], strict=True))


@cache
def units() -> dict[str, str]:
    """Map names of units with a prefix to their symbols."""
    return {
        prefix + unit: sign + symbol
        for prefix, sign in PREFIXES.items()
        for unit, symbol in UNITS.items()
    }


@cache
def landmarks() -> dict[str, str]:
    """Map landmarks to the countries they are in."""
    return grouped(LANDMARKS)


@cache
def products() -> dict[str, str]:
    """Map products to the companies that made them first."""
    return grouped(PRODUCTS)


SKILLS = {
    "element symbol": Skill(
        lambda: tuple(elements()),
        answer=lambda element: elements()[element],
        teachable=False,
        seen=lines("""
            What is the chemical symbol of {}?
            How do chemists abbreviate {}?
            Symbol for the element {}:
            I need the one or two letters for {} in formulas.
            Find {} in the periodic table; what letters are in its box?
            Write {} as in a chemical formula, a single atom.
            Could you give the sign of the element {}?
            Shorten {} the way the periodic table does.
        """),
        unseen=lines("""
            A bottle in the lab holds {}; which letters label it?
            State what stands for {} in equations of chemistry.
            As O is to oxygen, so what is to {}?
        """),
    ),
    "element": Skill(
        lambda: tuple(elements()),
        answer=str,
        text=lambda element: elements()[element],
        teachable=False,
        seen=lines("""
            Which element has the symbol {}?
            What does {} mean in chemistry? Use lower case.
            Name the chemical element {}, in lower case.
            {} in the periodic table is which element?
            I need the name of the element written {}, in small letters.
            Expand the chemical symbol {}.
            A formula has {}; which element is that?
            Could you read the element symbol {}?
        """),
        unseen=lines("""
            A bottle in the lab says {}; what is in it, in small letters?
            State the substance whose atoms are noted {}.
            As oxygen is to O, so what is to {}?
        """),
    ),
    "unit symbol": Skill(
        lambda: tuple(units()),
        answer=lambda unit: units()[unit],
        seen=lines("""
            What is the symbol of the unit {}?
            Abbreviate the unit {}.
            {} in short, as physicists write it:
            I need the SI abbreviation of {}.
            Which letters stand for one {}?
            Shorten {} as after a number.
            Could you write the unit {} by its symbol?
            Give the sign used for {} in tables.
        """),
        unseen=lines("""
            A meter's scale is in units of one {}; what is printed on it?
            State how engineers note {}.
            Prefix and unit of {}: a letter each, or so. Which?
        """),
    ),
    "unit": Skill(
        lambda: tuple(units()),
        answer=str,
        text=lambda unit: units()[unit],
        seen=lines("""
            Which unit is abbreviated {}?
            What does the unit symbol {} mean?
            Spell out the unit {} in the singular.
            {} is short for what unit?
            I need the full name of the unit {}, singular.
            Read the SI symbol {} aloud, as one unit.
            Expand {}, a prefix and a unit, to one word.
            A table gives values in {}; name that unit, one of it.
        """),
        unseen=lines("""
            On an instrument I see 1 {}; one what?
            State, as a single word, what {} is to engineers.
            Lengthen {} to its prefix and unit.
        """),
    ),
    "landmark": Skill(
        lambda: tuple(landmarks()),
        answer=lambda landmark: landmarks()[landmark],
        teachable=False,
        seen=lines("""
            In which country can I visit {}?
            Name the country that has {}.
            Country of the sight {}:
            Tourists see {} in what country?
            I need to know which country to fly to for {}.
            Whose famous sight is {}? Give the country.
            Could you place {} in a country?
            A photo shows {}. Which country was it taken in?
        """),
        unseen=lines("""
            A postcard with {} bears stamps of which nation?
            State the land that is proud of {}.
            To stand before {}, whose border must I cross?
        """),
    ),
    "maker": Skill(
        lambda: tuple(products()),
        answer=lambda product: products()[product],
        teachable=False,
        seen=lines("""
            Which company makes {}?
            Who is the manufacturer of {}?
            Name the company behind {}.
            Brand that launched {}:
            I need the maker of {}, a company.
            {} is a product of which firm?
            Could you match {} with its company?
            Look at {}: whose logo is on it?
        """),
        unseen=lines("""
            Whom did customers pay for {}? Give the firm.
            State the business that brought {} to market.
            Engineers of {} worked for what corporation?
        """),
    ),
}
