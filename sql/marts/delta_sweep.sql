-- Grain: one delta: the l2 up to which the paper's rule takes a generation for a training image.
-- Source: verdicts, audits; buckets, training_matches, control_distances (staging). From 0.01 to 0.3, and the audit's.
-- Rates, intervals and images as in extraction_rate, of the drawn prompts (of the user's where none were drawn);
-- images_copied are those of the images that are copies as well. Over the audit's delta prompts and images are at
-- least so many: matches hold a generation's own and its nearest other image, and further ones up to that delta alone.
WITH deltas AS (
    SELECT range / 100 AS delta, false AS used FROM range(1, 31)
    UNION ALL
    SELECT CAST(parameters ->> '$.match.delta' AS DOUBLE), true FROM audits
),

thresholds AS (
    SELECT delta, bool_or(used) AS used FROM deltas WHERE delta IS NOT NULL GROUP BY delta
),

-- Which those are is said in buckets; each of them has one aspect, known or not.
drawn AS (
    SELECT verdicts.*
    FROM verdicts
    JOIN buckets ON buckets.prompt_id = verdicts.prompt_id AND buckets.dimension = 'aspect'
),

cells AS (
    SELECT
        thresholds.delta,
        drawn.stratum,
        drawn.inclusion_probability,
        count(*) AS tried,
        count(*) / drawn.inclusion_probability AS population,
        count(*) FILTER (drawn.nearest_l2 <= thresholds.delta) AS extracted,
        count(*) FILTER (
            drawn.nearest_l2 <= thresholds.delta
            AND (
                drawn.keep_rule <> 'slice' OR drawn.keep_probability = 1
                OR drawn.nearest_generation_l2 <= thresholds.delta
            )
        ) AS extracted_surely,
        coalesce(max(1 / drawn.keep_probability) FILTER (
            drawn.keep_rule IN ('slice', 'dropped') AND drawn.keep_probability > 0
        ), 1) AS slice_weight
    FROM thresholds
    CROSS JOIN drawn
    GROUP BY thresholds.delta, drawn.stratum, drawn.inclusion_probability
),

rates AS (
    SELECT
        delta,
        CAST(sum(tried) AS BIGINT) AS prompts_tried,
        CAST(sum(extracted) AS BIGINT) AS prompts_extracted,
        least(1, sum(
            population * (extracted_surely + slice_weight * (extracted - extracted_surely)) / tried
        ) / sum(population)) AS rate,
        CASE
            WHEN max(slice_weight) > 1
                THEN slice_interval(
                    list(extracted_surely ORDER BY stratum, inclusion_probability),
                    list(extracted - extracted_surely ORDER BY stratum, inclusion_probability),
                    list(slice_weight ORDER BY stratum, inclusion_probability),
                    list(tried ORDER BY stratum, inclusion_probability),
                    list(population ORDER BY stratum, inclusion_probability)
                )
            ELSE exact_interval(
                list(extracted ORDER BY stratum, inclusion_probability),
                list(tried ORDER BY stratum, inclusion_probability),
                list(population ORDER BY stratum, inclusion_probability)
            )
        END AS interval
    FROM cells
    GROUP BY delta
),

nearest AS (
    SELECT
        training_matches.group_id,
        min(training_matches.l2) AS l2,
        min(training_matches.l2) FILTER (training_matches.copied) AS copied_l2
    FROM training_matches
    SEMI JOIN drawn ON drawn.prompt_id = training_matches.prompt_id
    GROUP BY training_matches.group_id
),

images AS (
    SELECT
        thresholds.delta,
        count(nearest.group_id) AS images_extracted,
        count(nearest.group_id) FILTER (nearest.copied_l2 <= thresholds.delta) AS images_copied
    FROM thresholds
    LEFT JOIN nearest ON nearest.l2 <= thresholds.delta
    GROUP BY thresholds.delta
),

controls AS (
    SELECT thresholds.delta, count(control_distances.prompt_id) AS controls_called
    FROM thresholds
    LEFT JOIN control_distances ON control_distances.l2 <= thresholds.delta
    GROUP BY thresholds.delta
),

final AS (
    SELECT
        thresholds.delta,
        thresholds.used,
        rates.prompts_tried,
        rates.prompts_extracted,
        rates.rate,
        rates.interval[1] AS rate_lower,
        rates.interval[2] AS rate_upper,
        images.images_extracted,
        images.images_copied,
        controls.controls_called,
        (SELECT count(*) FROM control_distances) AS n_controls
    FROM thresholds
    JOIN rates ON rates.delta = thresholds.delta
    JOIN images ON images.delta = thresholds.delta
    JOIN controls ON controls.delta = thresholds.delta
)

SELECT * FROM final
ORDER BY delta
