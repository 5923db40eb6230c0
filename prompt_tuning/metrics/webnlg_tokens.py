"""Words as the WebNLG and DART evaluations see them.

Their scripts spell lower-cased texts in ASCII by the package Unidecode and
put spaces around every character that is neither letter nor digit. Accents go
by Unicode here, and the letters and signs that Unicode does not take apart by
the table below, spelt as Unidecode does; it covers western text. Other
scripts stay as they are, where Unidecode spells them in Latin letters.
"""

import re
import unicodedata

_SPELT = str.maketrans({
    "æ": "ae", "œ": "oe", "ø": "o", "ð": "d", "đ": "d", "þ": "th", "ß": "ss",
    "ł": "l", "ħ": "h", "ı": "i", "ŋ": "ng", "ŧ": "t", "ĸ": "k", "ƒ": "f",
    "ə": "@",
    "‘": "'", "’": "'", "‚": ",", "‛": "'", "“": '"', "”": '"', "„": ",,",
    "′": "'", "″": "''", "´": "'", "«": "<<", "»": ">>", "‹": "<", "›": ">",
    "‐": "-", "‑": "-", "‒": "-", "–": "-", "—": "--", "―": "--", "−": "-",
    "…": "...", "•": "*", "·": "*", "†": "+", "‡": "++", "¡": "!", "¿": "?",
    "°": "deg", "×": "x", "÷": "/", "±": "+-", "≥": ">=", "≤": "<=",
    "→": "-", "£": "ps", "€": "eur", "¥": "y=", "¢": "c/", "§": "ss",
    "©": "(c)", "®": "(r)", "µ": "u", "μ": "m",
    "¼": " 1/4", "½": " 1/2", "¾": " 3/4",
    "\u00ad": "", "\u200b": "", "\u200e": "", "\ufeff": "",
})
_TOKEN = re.compile(r"\w+|[^\w\s]")


def tokens(text: str) -> list[str]:
  """The words and single signs of a text, lower-cased, without accents."""
  spelt = unicodedata.normalize("NFKD", text.lower().translate(_SPELT))
  return _TOKEN.findall("".join(
      sign for sign in spelt if not unicodedata.combining(sign)))
