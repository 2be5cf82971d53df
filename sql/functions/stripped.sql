-- Takes: a text. Gives: the text without the blanks around it, as Python's strip() takes them away, by which captions
-- are compared everywhere else: trim() knows the space alone, and \s is less.
CREATE MACRO stripped(text) AS
    regexp_replace(
        text, '^[\x09-\x0d\x1c-\x1f\x{85}\p{Z}]+|[\x09-\x0d\x1c-\x1f\x{85}\p{Z}]+$', '', 'g'
    )
