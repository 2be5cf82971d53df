-- Takes: a text. Gives: the different words in it, in small letters; of scripts that put no space between words, each
-- sign is one. None of a text that is null.
CREATE MACRO words_of(text) AS list_distinct(regexp_extract_all(
    lower(coalesce(text, '')), '[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Khmer}\p{Lao}\p{Myanmar}]|[\p{L}\p{M}\p{N}]+'
))
