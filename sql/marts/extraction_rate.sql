-- Grain: one stratum of duplicates (list: prompts that the user brought).
-- Source: verdicts, matches. Denominators: prompts_tried; for the calibrated verdict prompts_calibrated, since a prompt
-- that the user brought and that is nobody's caption has no image of its own to be tested against.
-- Intervals: Wilson, 95%. A training image is counted once, however often it is repeated: its duplicate group.
WITH hit AS (
    SELECT
        verdicts.stratum,
        count(DISTINCT matches.group_id) AS images_extracted
    FROM matches
    JOIN verdicts USING (prompt_id)
    WHERE matches.extracted AND matches.role = 'training'
    GROUP BY verdicts.stratum
),

tried AS (
    SELECT
        stratum,
        stratum_order,
        min(n_duplicates) AS fewest_duplicates,
        max(n_duplicates) AS most_duplicates,
        count(*) AS prompts_tried,
        min(inclusion_probability) AS inclusion_probability,
        count(*) FILTER (flagged) AS prompts_flagged,
        count(*) FILTER (extracted) AS prompts_extracted,
        count(extracted_calibrated) AS prompts_calibrated,
        CASE WHEN count(extracted_calibrated) = 0 THEN NULL ELSE count(*) FILTER (extracted_calibrated) END
            AS prompts_extracted_calibrated
    FROM verdicts
    GROUP BY stratum, stratum_order
),

final AS (
    SELECT
        tried.stratum AS duplicates,
        tried.* EXCLUDE (stratum),
        coalesce(hit.images_extracted, 0) AS images_extracted,
        tried.prompts_extracted / tried.prompts_tried AS rate,
        wilson_lower(tried.prompts_extracted, tried.prompts_tried) AS rate_lower,
        wilson_upper(tried.prompts_extracted, tried.prompts_tried) AS rate_upper,
        tried.prompts_extracted_calibrated / nullif(tried.prompts_calibrated, 0) AS rate_calibrated,
        wilson_lower(tried.prompts_extracted_calibrated, tried.prompts_calibrated) AS rate_calibrated_lower,
        wilson_upper(tried.prompts_extracted_calibrated, tried.prompts_calibrated) AS rate_calibrated_upper
    FROM tried
    LEFT JOIN hit ON hit.stratum = tried.stratum
)

SELECT * FROM final
ORDER BY stratum_order
