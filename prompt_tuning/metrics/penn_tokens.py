"""Words as the COCO and E2E scorers see them: Penn Treebank's, lower-cased.

Those scorers call Stanford CoreNLP 3.4.1's PTBTokenizer, in Java, and leave
out what it makes of punctuation. Here the rules that English sentences meet
are written again. The words are the same in all of E2E's 13,572 texts that
were compared, and in 99.1 % of WebNLG's and 99.4 % of DART's. What differs:

* abbreviations that only its long list has, such as "plc." and "Math.", and
  whether a period that ends the text belongs to an initial, "18 m.";
* what it joins over a space: phone numbers, "3 1/2", " :-)";
* apostrophes within words other than English ones, "al-Zawra'a";
* scripts whose marks it drops or splits at, such as Tamil.
"""

import re

# Between words; the scorers leave these out. Brackets stay in, as "-lrb-":
# the scorers' own list has them in capitals, which no word has by then.
_PUNCTUATION = frozenset({
    "''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"})

_AS_ASCII = {
    "“": "``", "”": "''", "„": "``", "«": "``", "»": "''", "‘": "`",
    "’": "'", "–": "--", "—": "--", "…": " ... ", "\u00ad": "",
    "£": "#", "€": "$", "¢": "cents",
    "¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3",
}
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-",
             "{": "-lcb-", "}": "-rcb-", '"': "''"}
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"'}

_ABBREVIATIONS = (
    "mr mrs ms dr prof rev gen sen rep gov lt col capt sgt maj st jr sr inc co "
    "corp ltd bros assn etc vs al adv ave blvd rd sq mt ft jan feb mar apr jun "
    "jul aug sep sept oct nov dec messrs hon pres no vol pp fig").split()

_TOKEN = re.compile(rf"""
    </?[a-z][^<>\s]*>                                  # a tag
  | (?:https?://|www\.)\S*[^\s.,;:!?'")\]]             # an address
  | [\w.+-]+@\w[\w-]*(?:\.\w+)+
  | can(?=not\b) | (?:gon|wan)(?=na\b) | got(?=ta\b) | (?:gim|lem)(?=me\b)
  | n't\b | '(?:s|m|d|re|ve|ll|n|em)\b | 't(?=is\b|was\b) | '\d\ds?\b
  | [^\W_]+?(?=n't\b)
  | (?<![^\W_])(?:[^\W\d_]\.)+(?:[^\W\d_]\b\.?)?(?![^\W_])  # U.S., F.C, J.
  | (?:{"|".join(_ABBREVIATIONS)})\.(?![^\W_])
  | (?:(?:(?<![^\s(#$])[-+])?\.?(?=\d))?[^\W_]+        # a word, a number
    (?: [-/_][^\W_]+ | (?<=\d)[.,:]\d+ | (?<=[^\W\d_])\.[^\W_]+
      | '(?!(?:s|m|d|re|ve|ll)\b)[^\W_]+
      | (?-i:(?<=[A-Z])&(?=[A-Z])[A-Z]+) )*
  | \.\.\.+ | --+ | ``|'' | [?!]+ | \S
""", re.VERBOSE | re.IGNORECASE)


def tokens(text: str) -> list[str]:
  """The words of a text, lower-cased, without punctuation."""
  for given, usual in (*_AS_ASCII.items(), *_ENTITIES.items()):
    text = text.replace(given, usual)
  found = [_BRACKETS.get(token, token) for token in _TOKEN.findall(text)]
  return [token.lower() for token in found
          if token not in _PUNCTUATION and not re.fullmatch(
              r"-{2,}|\.{3,}", token)]
