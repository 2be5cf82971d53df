-- Grain: the lake, one row: from which gap on a picture is another than the one of which LAION took the similarity.
-- Source: samples, embeddings (with --compare_captions).
-- A gap is the picture's cosine with its caption, by the lake's CLIP, less LAION's similarity of the two. The picture
-- that LAION had has a gap near that of most pictures; one that was exchanged is less like the caption, so its gap is
-- lower. It is taken for another one by Hampel's identifier: so many scaled median deviations under the median gap, of
-- which three are usual and five our choice; and at least 0.05 under it, our choice too: encoding 120 logos anew, as
-- tests/pipelines/test_drift.py does, moves a cosine by up to 0.03. So CLIP may be another than LAION's, if it sees
-- what LAION's saw: power is the share of the pictures that the rule finds where each is compared with another
-- picture's caption, as if it had been exchanged. Where it finds less than nine of ten, or fewer than 100 pictures
-- could be compared, nothing is said. The rule asks that less than half of the pictures changed.
-- By 1,000,000 pictures at most: sample_ids are hashes, so their order is by chance.
WITH gaps AS (
    SELECT
        embeddings.caption_cosine - samples.similarity AS gap,
        embeddings.other_caption_cosine - samples.similarity AS other_gap
    FROM samples
    JOIN embeddings ON embeddings.sample_id = samples.sample_id AND embeddings.role = 'training'
    WHERE samples.role = 'training' AND gap IS NOT NULL
    ORDER BY samples.sample_id
    LIMIT 1000000
),

limits AS (
    SELECT
        count(*) AS compared,
        (median(gap) - greatest(5 * 1.4826 * mad(gap), 0.05))::DOUBLE AS lowest_gap
    FROM gaps
),

powers AS (
    SELECT count(*) FILTER (WHERE other_gap < lowest_gap) / nullif(count(other_gap), 0) AS power
    FROM gaps
    CROSS JOIN limits
),

final AS (
    SELECT
        limits.compared,
        powers.power,
        CASE WHEN limits.compared >= 100 AND powers.power >= 0.9 THEN limits.lowest_gap END AS lowest_gap
    FROM limits
    CROSS JOIN powers
)

SELECT * FROM final
