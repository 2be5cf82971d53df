-- Grain: one bucket of one dimension: all, duplicates, prompt_length, aspect or domain.
-- Source: verdicts, training_matches, buckets (staging). Denominators: prompts_tried; of what is asked about a
-- prompt's own image prompts_with_image, and where controls are needed prompts_calibrated, since a prompt that the
-- user brought and that is nobody's caption has no image of its own. A training image is counted once, however often
-- it is repeated: its duplicate group. Rates are those of the population that the prompts were drawn from: a prompt
-- weighs 1 / inclusion_probability. The paper's rule asks for other images too, of which the filter drops most: what
-- was found in the slice that it kept weighs 1 / keep_probability besides, so the rate doesn't depend on how large
-- that slice is. Intervals, 95%: exact_interval is Blaker's where all prompts weigh the same (one stratum, or all
-- tried in full), and by strata where they don't; slice_interval where some prompts stand for dropped ones; Wilson's,
-- of the prompts as they are, stands beside them to compare with.
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
        sum(verdicts.extraction_weight) AS extracted_weighted,
        count(*) FILTER (verdicts.extraction_weight = 1) AS extracted_surely,
        count(*) FILTER (verdicts.extraction_weight > 1) AS extracted_in_slice,
        max(1 / verdicts.keep_probability) FILTER (
            verdicts.keep_rule IN ('slice', 'dropped') AND verdicts.keep_probability > 0
        ) AS slice_weight,
        count(*) FILTER (verdicts.copied_any) AS copied_any,
        count(verdicts.copied) AS with_image,
        count(verdicts.copied) / verdicts.inclusion_probability AS with_image_population,
        count(*) FILTER (verdicts.copied) AS copied,
        count(verdicts.extracted_calibrated) AS calibrated,
        count(verdicts.extracted_calibrated) / verdicts.inclusion_probability AS calibrated_population,
        count(*) FILTER (verdicts.seen) AS seen,
        count(*) FILTER (verdicts.extracted_calibrated) AS extracted_calibrated
    FROM buckets
    JOIN verdicts ON verdicts.prompt_id = buckets.prompt_id
    GROUP BY
        buckets.dimension, buckets.bucket, buckets.bucket_order, verdicts.stratum, verdicts.inclusion_probability
),

hit AS (
    SELECT
        buckets.dimension,
        buckets.bucket_order,
        count(DISTINCT training_matches.group_id) FILTER (training_matches.extracted) AS images_extracted,
        count(DISTINCT training_matches.group_id) FILTER (training_matches.copied) AS images_copied
    FROM training_matches
    JOIN buckets ON buckets.prompt_id = training_matches.prompt_id
    WHERE training_matches.extracted OR training_matches.copied
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
        CAST(sum(copied_any) AS BIGINT) AS prompts_copied_any,
        CAST(sum(with_image) AS BIGINT) AS prompts_with_image,
        CASE WHEN sum(with_image) > 0 THEN CAST(sum(copied) AS BIGINT) END AS prompts_copied,
        CAST(sum(calibrated) AS BIGINT) AS prompts_calibrated,
        CASE WHEN sum(calibrated) > 0 THEN CAST(sum(seen) AS BIGINT) END AS prompts_seen,
        CASE WHEN sum(calibrated) > 0 THEN CAST(sum(extracted_calibrated) AS BIGINT) END
            AS prompts_extracted_calibrated,
        least(1, sum(population * extracted_weighted / tried) / sum(population)) AS rate,
        sum(copied / inclusion_probability) / nullif(sum(with_image_population), 0) AS rate_copied,
        sum(seen / inclusion_probability) / nullif(sum(calibrated_population), 0) AS rate_seen,
        sum(extracted_calibrated / inclusion_probability) / nullif(sum(calibrated_population), 0) AS rate_calibrated,
        CASE
            WHEN max(slice_weight) > 1
                THEN slice_interval(
                    list(extracted_surely ORDER BY stratum, inclusion_probability),
                    list(extracted_in_slice ORDER BY stratum, inclusion_probability),
                    list(coalesce(slice_weight, 1) ORDER BY stratum, inclusion_probability),
                    list(tried ORDER BY stratum, inclusion_probability),
                    list(population ORDER BY stratum, inclusion_probability)
                )
            ELSE exact_interval(
                list(extracted ORDER BY stratum, inclusion_probability),
                list(tried ORDER BY stratum, inclusion_probability),
                list(population ORDER BY stratum, inclusion_probability)
            )
        END AS interval,
        exact_interval(
            list(copied ORDER BY stratum, inclusion_probability) FILTER (with_image > 0),
            list(with_image ORDER BY stratum, inclusion_probability) FILTER (with_image > 0),
            list(with_image_population ORDER BY stratum, inclusion_probability) FILTER (with_image > 0)
        ) AS interval_copied,
        exact_interval(
            list(seen ORDER BY stratum, inclusion_probability) FILTER (calibrated > 0),
            list(calibrated ORDER BY stratum, inclusion_probability) FILTER (calibrated > 0),
            list(calibrated_population ORDER BY stratum, inclusion_probability) FILTER (calibrated > 0)
        ) AS interval_seen,
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
        tried.prompts_with_image,
        tried.prompts_copied,
        tried.prompts_copied_any,
        tried.prompts_calibrated,
        tried.prompts_seen,
        tried.prompts_extracted_calibrated,
        tried.prompts_extracted,
        coalesce(hit.images_copied, 0) AS images_copied,
        coalesce(hit.images_extracted, 0) AS images_extracted,
        tried.rate_copied,
        tried.interval_copied[1] AS rate_copied_lower,
        tried.interval_copied[2] AS rate_copied_upper,
        tried.rate_seen,
        tried.interval_seen[1] AS rate_seen_lower,
        tried.interval_seen[2] AS rate_seen_upper,
        tried.rate_calibrated,
        tried.interval_calibrated[1] AS rate_calibrated_lower,
        tried.interval_calibrated[2] AS rate_calibrated_upper,
        tried.wilson_calibrated[1] AS rate_calibrated_wilson_lower,
        tried.wilson_calibrated[2] AS rate_calibrated_wilson_upper,
        tried.rate,
        tried.interval[1] AS rate_lower,
        tried.interval[2] AS rate_upper,
        tried.wilson[1] AS rate_wilson_lower,
        tried.wilson[2] AS rate_wilson_upper
    FROM tried
    LEFT JOIN hit ON hit.dimension = tried.dimension AND hit.bucket_order = tried.bucket_order
)

SELECT * FROM final
ORDER BY
    list_position(['all', 'duplicates', 'prompt_length', 'aspect', 'domain'], dimension),
    bucket_order
