-- Grain: one bucket of one dimension: all, duplicates, prompt_length, aspect or domain.
-- Source: verdicts, matches; buckets (staging). Denominators: prompts_tried; for the calibrated verdict
-- prompts_calibrated, since a prompt that the user brought and that is nobody's caption has no image of its own to be
-- tested against. A training image is counted once, however often it is repeated: its duplicate group.
-- Rates are those of the population that the prompts were drawn from: a prompt weighs 1 / inclusion_probability.
-- Intervals, 95%: exact_interval is Blaker's where all prompts weigh the same (one stratum, or all tried in full), and
-- by strata where they don't; Wilson's, of the prompts as they are, stands beside them to compare with.
WITH cells AS (
    SELECT
        buckets.dimension,
        buckets.bucket,
        buckets.bucket_order,
        verdicts.stratum,
        verdicts.inclusion_probability,
        min(verdicts.n_duplicates) AS fewest_duplicates,
        max(verdicts.n_duplicates) AS most_duplicates,
        count(*) AS tried,
        count(*) / verdicts.inclusion_probability AS population,
        count(*) FILTER (verdicts.flagged) AS flagged,
        count(*) FILTER (verdicts.extracted) AS extracted,
        count(verdicts.extracted_calibrated) AS calibrated,
        count(verdicts.extracted_calibrated) / verdicts.inclusion_probability AS calibrated_population,
        count(*) FILTER (verdicts.extracted_calibrated) AS extracted_calibrated
    FROM buckets
    JOIN verdicts ON verdicts.prompt_id = buckets.prompt_id
    GROUP BY
        buckets.dimension, buckets.bucket, buckets.bucket_order, verdicts.stratum, verdicts.inclusion_probability
),

hit AS (
    SELECT buckets.dimension, buckets.bucket_order, count(DISTINCT matches.group_id) AS images_extracted
    FROM matches
    JOIN buckets ON buckets.prompt_id = matches.prompt_id
    WHERE matches.extracted AND matches.role = 'training'
    GROUP BY ALL
),

tried AS (
    SELECT
        dimension,
        bucket,
        bucket_order,
        CAST(min(fewest_duplicates) AS INTEGER) AS fewest_duplicates,
        CAST(max(most_duplicates) AS INTEGER) AS most_duplicates,
        CAST(sum(tried) AS BIGINT) AS prompts_tried,
        sum(population) AS population,
        min(inclusion_probability) AS inclusion_probability,
        CAST(sum(flagged) AS BIGINT) AS prompts_flagged,
        CAST(sum(extracted) AS BIGINT) AS prompts_extracted,
        CAST(sum(calibrated) AS BIGINT) AS prompts_calibrated,
        CASE WHEN sum(calibrated) > 0 THEN CAST(sum(extracted_calibrated) AS BIGINT) END
            AS prompts_extracted_calibrated,
        sum(population * extracted / tried) / sum(population) AS rate,
        sum(extracted_calibrated / inclusion_probability) / nullif(sum(calibrated_population), 0) AS rate_calibrated,
        exact_interval(
            list(extracted ORDER BY stratum, inclusion_probability),
            list(tried ORDER BY stratum, inclusion_probability),
            list(population ORDER BY stratum, inclusion_probability)
        ) AS interval,
        exact_interval(
            list(extracted_calibrated ORDER BY stratum, inclusion_probability) FILTER (calibrated > 0),
            list(calibrated ORDER BY stratum, inclusion_probability) FILTER (calibrated > 0),
            list(calibrated_population ORDER BY stratum, inclusion_probability) FILTER (calibrated > 0)
        ) AS interval_calibrated,
        wilson_interval(CAST(sum(extracted) AS BIGINT), CAST(sum(tried) AS BIGINT)) AS wilson,
        wilson_interval(CAST(sum(extracted_calibrated) AS BIGINT), CAST(nullif(sum(calibrated), 0) AS BIGINT))
            AS wilson_calibrated
    FROM cells
    GROUP BY dimension, bucket, bucket_order
),

final AS (
    SELECT
        tried.dimension,
        tried.bucket,
        tried.bucket_order,
        tried.fewest_duplicates,
        tried.most_duplicates,
        tried.prompts_tried,
        tried.population,
        tried.inclusion_probability,
        tried.prompts_flagged,
        tried.prompts_extracted,
        tried.prompts_calibrated,
        tried.prompts_extracted_calibrated,
        coalesce(hit.images_extracted, 0) AS images_extracted,
        tried.rate,
        tried.interval[1] AS rate_lower,
        tried.interval[2] AS rate_upper,
        tried.wilson[1] AS rate_wilson_lower,
        tried.wilson[2] AS rate_wilson_upper,
        tried.rate_calibrated,
        tried.interval_calibrated[1] AS rate_calibrated_lower,
        tried.interval_calibrated[2] AS rate_calibrated_upper,
        tried.wilson_calibrated[1] AS rate_calibrated_wilson_lower,
        tried.wilson_calibrated[2] AS rate_calibrated_wilson_upper
    FROM tried
    LEFT JOIN hit ON hit.dimension = tried.dimension AND hit.bucket_order = tried.bucket_order
)

SELECT * FROM final
ORDER BY
    list_position(['all', 'duplicates', 'prompt_length', 'aspect', 'domain'], dimension),
    bucket_order
