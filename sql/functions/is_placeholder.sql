-- Takes: of a duplicate group how many of its images have a caption, on how many hosts they lie, and how like one
-- another the captions are (placeholders.likeness). Gives: whether it is a placeholder, such as "image not found".
-- Why 0.04: of ten captions and more that were drawn by chance from LAION likeness is hardly ever over it, and where
-- three tenths of them are of one family of captions that Stable Diffusion is known to have memorised, hardly ever
-- under it (benchmarks/placeholders.py). A placeholder that is asked for costs some generations; a picture that is
-- taken for one is never tried. So the limit lies near chance.
CREATE MACRO is_placeholder(captions, domains, likeness) AS
    captions >= 10 AND domains >= 5 AND likeness <= 0.04
