-- Grain: one k: at most so many training images are near to the extracted one (paper, definition 2).
-- Source: extractions, eidetic_counts. k counts by pixels, over the whole training set.
WITH ks AS (
    SELECT unnest([1, 10, 100, 1000]) AS k
),

delta AS (
    SELECT max(eidetic_delta) AS eidetic_delta FROM eidetic_counts
),

final AS (
    SELECT
        ks.k,
        delta.eidetic_delta,
        count(extractions.sample_id) AS images,
        count(extractions.sample_id) FILTER (extractions.copied) AS images_copied,
        count(extractions.sample_id) FILTER (extractions.extracted) AS images_extracted,
        count(extractions.sample_id) FILTER (extractions.extracted_calibrated) AS images_extracted_calibrated
    FROM ks
    CROSS JOIN delta
    LEFT JOIN extractions ON extractions.k <= ks.k
    GROUP BY ks.k, delta.eidetic_delta
)

SELECT * FROM final
ORDER BY k
