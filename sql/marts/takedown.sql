-- Grain: one training image to take out of the training set, one prompt to block, or one image that was learned.
-- Source: extractions, duplicate_groups, samples, verdicts, training_matches (staging), prompts. What came back as a
-- copy goes with all its duplicates, since any of them would teach it again. So do samples of the same url that were
-- not downloaded, which are in no group: who trains on them may have them. What was only seen is listed apart, as kind
-- "seen". A prompt whose text was forgotten can't be blocked by it, and is not named.
WITH images AS (
    SELECT
        'image' AS kind,
        duplicate_groups.sample_id,
        samples.url,
        duplicate_groups.group_id,
        CAST(NULL AS VARCHAR) AS prompt_id,
        CAST(NULL AS VARCHAR) AS prompt,
        CASE
            WHEN duplicate_groups.sample_id = extractions.sample_id THEN 'copied'
            ELSE 'duplicate of a copied image'
        END AS why,
        extractions.confidence_rank
    FROM extractions
    JOIN duplicate_groups ON duplicate_groups.group_id = extractions.group_id
    LEFT JOIN samples ON samples.sample_id = duplicate_groups.sample_id
    WHERE extractions.copied
),

of_same_url AS (
    SELECT
        'image' AS kind,
        samples.sample_id,
        samples.url,
        min_by(images.group_id, images.confidence_rank) AS group_id,
        CAST(NULL AS VARCHAR) AS prompt_id,
        CAST(NULL AS VARCHAR) AS prompt,
        'same url, not downloaded' AS why,
        min(images.confidence_rank) AS confidence_rank
    FROM samples
    JOIN images ON images.url = samples.url
    ANTI JOIN duplicate_groups ON duplicate_groups.sample_id = samples.sample_id
    WHERE samples.role = 'training'
    GROUP BY samples.sample_id, samples.url
),

prompts_to_block AS (
    SELECT
        'prompt' AS kind,
        CAST(NULL AS VARCHAR) AS sample_id,
        CAST(NULL AS VARCHAR) AS url,
        prompts.group_id,
        prompts.prompt_id,
        prompts.text AS prompt,
        'gives back a training image' AS why,
        CAST(NULL AS BIGINT) AS confidence_rank
    FROM prompts
    SEMI JOIN training_matches ON training_matches.prompt_id = prompts.prompt_id AND training_matches.copied
    WHERE prompts.text <> '[forgotten]'
),

only_seen AS (
    SELECT
        'seen' AS kind,
        duplicate_groups.sample_id,
        samples.url,
        duplicate_groups.group_id,
        CAST(NULL AS VARCHAR) AS prompt_id,
        CAST(NULL AS VARCHAR) AS prompt,
        'the model was trained on it, and did not give it back' AS why,
        CAST(NULL AS BIGINT) AS confidence_rank
    FROM duplicate_groups
    SEMI JOIN verdicts ON verdicts.group_id = duplicate_groups.group_id AND verdicts.seen
    ANTI JOIN extractions ON extractions.group_id = duplicate_groups.group_id AND extractions.copied
    LEFT JOIN samples ON samples.sample_id = duplicate_groups.sample_id
),

final AS (
    SELECT * FROM images
    UNION ALL
    SELECT * FROM of_same_url
    UNION ALL
    SELECT * FROM prompts_to_block
    UNION ALL
    SELECT * FROM only_seen
)

SELECT * FROM final
ORDER BY kind, confidence_rank, sample_id, prompt_id
