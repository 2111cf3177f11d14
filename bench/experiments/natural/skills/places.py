"""Skills about cities, nationalities and languages of countries.

Most of them test what a small model knows by heart.
"""

from __future__ import annotations

from functools import cache

from dnd_fast.bench.experiments.natural.skills.countries import capital, countries
from dnd_fast.bench.experiments.natural.skills.skill import Skill, lines

DEMONYMS = """
    Japan Japanese, China Chinese, India Indian, Germany German, France French, Italy Italian,
    Spain Spanish, Portugal Portuguese, Poland Polish, Sweden Swedish, Norway Norwegian,
    Denmark Danish, Finland Finnish, Greece Greek, Turkey Turkish, Russia Russian,
    Ukraine Ukrainian, Hungary Hungarian, Austria Austrian, Switzerland Swiss, Belgium Belgian,
    Netherlands Dutch, Ireland Irish, Czechia Czech, Croatia Croatian, Serbia Serbian,
    Romania Romanian, Bulgaria Bulgarian, Egypt Egyptian, Morocco Moroccan, Algeria Algerian,
    Tunisia Tunisian, Libya Libyan, Nigeria Nigerian, Kenya Kenyan, Ethiopia Ethiopian,
    Ghana Ghanaian, Uganda Ugandan, Tanzania Tanzanian, Zambia Zambian, Zimbabwe Zimbabwean,
    Angola Angolan, Cameroon Cameroonian, Senegal Senegalese, Mali Malian, Sudan Sudanese,
    Rwanda Rwandan, Liberia Liberian, Malawi Malawian, Canada Canadian, Mexico Mexican,
    Cuba Cuban, Haiti Haitian, Guatemala Guatemalan, Honduras Honduran, Nicaragua Nicaraguan,
    Panama Panamanian, Colombia Colombian, Venezuela Venezuelan, Ecuador Ecuadorian, Peru Peruvian,
    Bolivia Bolivian, Chile Chilean, Brazil Brazilian, Uruguay Uruguayan, Paraguay Paraguayan,
    Australia Australian, Thailand Thai, Vietnam Vietnamese, Cambodia Cambodian,
    Malaysia Malaysian, Indonesia Indonesian, Pakistan Pakistani, Bangladesh Bangladeshi,
    Mongolia Mongolian, Iran Iranian, Iraq Iraqi, Syria Syrian, Lebanon Lebanese,
    Jordan Jordanian, Israel Israeli, Yemen Yemeni, Oman Omani, Kuwait Kuwaiti,
    Armenia Armenian, Georgia Georgian, Singapore Singaporean, Taiwan Taiwanese
"""
# Countries whose official or national language is not in doubt.
LANGUAGES = """
    Spanish: Spain, Mexico, Cuba, Colombia, Venezuela, Ecuador, Chile, Argentina, Uruguay, Honduras,
        Guatemala, Nicaragua, Panama, Costa Rica, Dominican Republic, El Salvador
    Arabic: Egypt, Jordan, Syria, Libya, Tunisia, Saudi Arabia, Yemen, Oman, Kuwait, Lebanon,
        United Arab Emirates
    French: France, Senegal, Ivory Coast, Benin, Togo, Guinea, Republic of the Congo
    English: United Kingdom, United States, Australia, Nigeria, Ghana, Liberia, Zambia, Sierra Leone
    Portuguese: Portugal, Brazil, Angola, Mozambique
    German: Germany, Austria
    Korean: South Korea, North Korea
    Romanian: Romania, Moldova
    Japanese: Japan
    Italian: Italy
    Polish: Poland
    Swedish: Sweden
    Norwegian: Norway
    Danish: Denmark
    Hungarian: Hungary
    Czech: Czechia
    Slovak: Slovakia
    Croatian: Croatia
    Serbian: Serbia
    Bulgarian: Bulgaria
    Greek: Greece
    Ukrainian: Ukraine
    Russian: Russia
    Georgian: Georgia
    Armenian: Armenia
    Turkish: Turkey
    Hebrew: Israel
    Thai: Thailand
    Vietnamese: Vietnam
    Khmer: Cambodia
    Mongolian: Mongolia
    Nepali: Nepal
    Bengali: Bangladesh
    Indonesian: Indonesia
    Uzbek: Uzbekistan
    Turkmen: Turkmenistan
"""
# No capitals, which would tell what another skill asks.
CITIES = """
    Japan: Osaka, Kyoto, Yokohama, Nagoya, Sapporo, Hiroshima
    China: Shanghai, Shenzhen, Guangzhou, Wuhan
    India: Mumbai, Kolkata, Chennai, Jaipur
    Germany: Munich, Hamburg, Stuttgart, Leipzig
    France: Lyon, Marseille, Toulouse, Bordeaux
    Italy: Milan, Turin, Bologna, Palermo
    Spain: Seville, Bilbao, Zaragoza
    Sweden: Gothenburg, Uppsala
    Norway: Trondheim, Stavanger
    Denmark: Aarhus, Odense
    Finland: Tampere, Turku
    Greece: Thessaloniki, Patras
    Turkey: Istanbul, Izmir, Antalya
    Russia: Novosibirsk, Vladivostok, Yekaterinburg
    Ukraine: Kharkiv, Lviv
    Austria: Salzburg, Graz, Innsbruck
    Switzerland: Lausanne, Basel
    Belgium: Antwerp, Ghent
    Netherlands: Rotterdam, Utrecht, Eindhoven
    United Kingdom: Leeds, Sheffield, Leicester, Coventry
    Ireland: Cork, Galway, Limerick
    Czechia: Brno, Ostrava
    Hungary: Debrecen, Szeged
    Egypt: Giza, Luxor
    Morocco: Casablanca, Marrakesh, Tangier
    Nigeria: Kano, Ibadan
    Kenya: Mombasa, Kisumu
    South Africa: Johannesburg, Durban, Cape Town
    United States: Chicago, Seattle, Detroit, Philadelphia
    Canada: Montreal, Calgary, Winnipeg, Toronto
    Mexico: Tijuana, Cancun, Monterrey, Acapulco
    Colombia: Medellin, Barranquilla
    Brazil: Rio de Janeiro, Recife, Fortaleza, Curitiba
    Australia: Brisbane, Adelaide, Hobart
    New Zealand: Auckland, Christchurch
    South Korea: Busan, Daegu, Incheon
    Vietnam: Haiphong, Da Nang
    Thailand: Chiang Mai, Phuket
    Indonesia: Surabaya, Bandung
    Pakistan: Karachi, Lahore, Peshawar
    Iran: Mashhad, Isfahan, Tabriz
    Iraq: Basra, Mosul
    Syria: Aleppo, Homs
"""


def grouped(text: str) -> dict[str, str]:
    """Read lines "group: member, member, …", and return each member's group."""
    groups: dict[str, str] = {}
    group = ""
    for line in lines(text):
        if ":" in line:
            group, line = line.split(":")
        groups |= {member.strip(): group for member in line.strip(" ,").split(",")}
    return groups


@cache
def demonyms() -> dict[str, str]:
    """Map countries to the adjectives for what comes from there."""
    pairs = (pair.split() for line in lines(DEMONYMS) for pair in line.strip(",").split(", "))
    return dict(pairs)


@cache
def official_languages() -> dict[str, str]:
    """Map countries to the language of their state."""
    return grouped(LANGUAGES)


@cache
def cities() -> dict[str, str]:
    """Map large cities to their countries."""
    return grouped(CITIES)


SKILLS = {
    "country of a capital": Skill(
        countries,
        answer=str,
        text=capital,
        teachable=False,
        seen=lines("""
            Of which country is {} the capital?
            Which country has its capital in {}?
            Name the country governed from {}.
            Capital: {}. Country?
            I need the country whose capital is {}.
            Match {} with the state it is the capital of.
            Could you say which nation's government sits in {}?
            Look up {} among capitals and return the country.
        """),
        unseen=lines("""
            Ambassadors live in {}; to what land are they sent?
            State whose chief city is {}.
            From {}, which nation is run?
        """),
    ),
    "country of a city": Skill(
        lambda: tuple(cities()),
        answer=lambda city: cities()[city],
        teachable=False,
        seen=lines("""
            In which country is {}?
            What country is the city of {} in?
            Name the country where {} lies.
            {}: country?
            I need the country of {}.
            Find {} on a map; whose territory is it?
            Could you tell which country {} belongs to?
            Sort the city {} under its country.
        """),
        unseen=lines("""
            A letter goes to {}; which land do I write below?
            State the nation that {} is a town of.
            Locals of {} carry passports from where?
        """),
    ),
    "demonym": Skill(
        lambda: tuple(demonyms()),
        answer=lambda country: demonyms()[country],
        seen=lines("""
            What is the adjective for {}?
            What do we call something that comes from {}?
            Give the nationality of someone from {}.
            A person from {} is what, in one adjective?
            I need the adjective that goes with {}.
            Turn the country {} into an adjective.
            Food from {} is called … food. Fill in.
            {} as an adjective:
        """),
        unseen=lines("""
            Citizens of {} have which nationality in their passports?
            State what a product made in {} is, in a word.
            The team of {} is the … team; which word fits?
        """),
    ),
    "country of a demonym": Skill(
        lambda: tuple(demonyms()),
        answer=str,
        text=lambda country: demonyms()[country],
        seen=lines("""
            Which country does the adjective {} refer to?
            Something {} comes from what country?
            Name the country of the {} people.
            {} is the nationality; which is the country?
            I need the country that belongs to the adjective {}.
            Where are {} citizens at home? Give the country.
            Turn the adjective {} into the country's name.
            Could you say which state the {} government runs?
        """),
        unseen=lines("""
            My neighbor is {}; from what land did he move here?
            State where {} goods are made.
            The {} flag flies over which nation?
        """),
    ),
    "official language": Skill(
        lambda: tuple(official_languages()),
        answer=lambda country: official_languages()[country],
        teachable=False,
        seen=lines("""
            What is the official language of {}?
            Which language do public offices use in {}?
            Name the national language of {}.
            Official tongue of {}:
            I need to know which language {} has made official.
            Laws in {} are written in which language?
            Which language would I need for a letter to the government of {}?
            Could you look up the language of state in {}?
        """),
        unseen=lines("""
            In what tongue are schools held across {}?
            State how the government of {} speaks, as a language.
            I translate a contract for {}; into what?
        """),
    ),
}
