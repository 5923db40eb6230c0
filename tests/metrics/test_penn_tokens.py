"""Words against CoreNLP's, which tests/expectations/text_metrics.json has."""

import pytest

from prompt_tuning.metrics import penn_tokens


def test_the_examples(scored):
  for text, words in scored["penn_words"].items():
    assert penn_tokens.tokens(text) == words.split(" "), text


@pytest.mark.parametrize("text, words", [
    # What java -cp stanford-corenlp-3.4.1.jar
    # edu.stanford.nlp.process.PTBTokenizer -preserveLines -lowerCase prints,
    # without the scorers' punctuation.
    ("(a) [b] {c} (non-family-friendly)",
     "-lrb- a -rrb- -lsb- b -rsb- -lcb- c -rcb- -lrb- non-family-friendly "
     "-rrb-"),
    ("It's £20-25, €5 or $10. Don't can't cannot gonna wanna I'm we'll",
     "it 's # 20-25 $ 5 or $ 10 do n't ca n't can not gon na wan na i 'm we "
     "'ll"),
    ("they've he'd John's James'.", "they 've he 'd john 's james"),
    ("“curly” ‘s’ it’s", "curly s it 's"),
    ("a/b and/or 1/2 5/5 555-1234", "a/b and/or 1/2 5/5 555-1234"),
    ("U.S. p.m. St. Mr. Dr. etc. vs. No. 5 e.g. i.e.",
     "u.s. p.m. st. mr. dr. etc. vs. no. 5 e.g. i.e."),
    ("5-star 3.5 1,000.50 .5 -5 +5 10% #1 a&b R&B AT&T",
     "5-star 3.5 1,000.50 .5 -5 +5 10 % # 1 a & b r&b at&t"),
    ("a -- b a --- b a – b a — b a... b… c", "a b a b a b a b a. b c"),
    ("Nice; no:yes a,b 5,6 what?!", "nice no yes a b 5,6 what ?!"),
    ("O'Neil o'clock 90's '90s", "o'neil o'clock 90 's '90s"),
    ("gimme lemme gotta 'tis won't ain't shan't",
     "gim me lem me got ta 't is wo n't ai n't sha n't"),
    ("user@mail.com http://www.x.com/a?b=c www.x.org <b>bold</b> &amp; _",
     "user@mail.com http://www.x.com/a?b=c www.x.org <b> bold </b> & _"),
    ("café Åland ½ ° ×", "café åland 1/2 ° ×"),
    ("", ""),
])
def test_rules(text, words):
  assert penn_tokens.tokens(text) == words.split()
