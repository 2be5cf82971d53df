-- Grain: one class of prompts under one mitigation.
-- Source: mitigations. Before, after and after DoRI are of the same prompts: those that were judged in each way that
-- was tried. The interval is Blaker's exact one, at 95%: the prompts of a class are drawn by hash, so all weigh the
-- same.
WITH pivoted AS (
    SELECT
        mitigated.*,
        plain.copied AS copied_before,
        plain.extracted AS extracted_before,
        plain.prompt_similarity AS prompt_similarity_before,
        plain.seconds AS seconds_before,
        plain.evaluations AS evaluations_before,
        attacked.copied AS copied_dori,
        attacked.extracted AS extracted_dori
    FROM mitigations AS mitigated
    JOIN mitigations AS plain
        ON plain.prompt_id = mitigated.prompt_id AND plain.mitigation = 'none' AND NOT plain.attacked
    LEFT JOIN mitigations AS attacked
        ON attacked.prompt_id = mitigated.prompt_id
        AND attacked.mitigation = mitigated.mitigation
        AND attacked.attacked
    WHERE NOT mitigated.attacked
        AND mitigated.status = 'success'
        AND plain.status = 'success'
        AND coalesce(attacked.status, 'success') = 'success'
),

counted AS (
    SELECT
        audit_id,
        model_revision,
        parameters_digest,
        mitigation,
        class,
        count(*) AS prompts,
        count(*) FILTER (copied_before) AS before,
        count(*) FILTER (copied) AS after,
        count(*) FILTER (copied_dori) AS dori,
        count(copied_dori) AS attacked,
        count(*) FILTER (extracted_before) AS extracted_before,
        count(*) FILTER (extracted) AS extracted_after,
        count(*) FILTER (extracted_dori) AS extracted_dori,
        avg(prompt_similarity) AS prompt_similarity,
        avg(prompt_similarity_before) AS prompt_similarity_before,
        avg(picture_similarity) AS picture_similarity,
        median(seconds) AS seconds,
        median(seconds_before) AS seconds_before,
        avg(evaluations) AS evaluations,
        avg(evaluations_before) AS evaluations_before
    FROM pivoted
    GROUP BY ALL
),

final AS (
    SELECT
        audit_id,
        model_revision,
        parameters_digest,
        mitigation,
        class,
        prompts,
        before,
        before / prompts AS rate_before,
        exact_interval([before], [prompts], [prompts])[1] AS rate_before_lower,
        exact_interval([before], [prompts], [prompts])[2] AS rate_before_upper,
        after,
        after / prompts AS rate_after,
        exact_interval([after], [prompts], [prompts])[1] AS rate_after_lower,
        exact_interval([after], [prompts], [prompts])[2] AS rate_after_upper,
        CASE WHEN attacked > 0 THEN dori END AS dori,
        CASE WHEN attacked > 0 THEN dori / attacked END AS rate_dori,
        CASE WHEN attacked > 0 THEN exact_interval([dori], [attacked], [attacked])[1] END AS rate_dori_lower,
        CASE WHEN attacked > 0 THEN exact_interval([dori], [attacked], [attacked])[2] END AS rate_dori_upper,
        extracted_before,
        extracted_after,
        CASE WHEN attacked > 0 THEN extracted_dori END AS extracted_dori,
        prompt_similarity,
        prompt_similarity_before,
        picture_similarity,
        seconds,
        seconds_before,
        evaluations,
        evaluations_before
    FROM counted
)

SELECT * FROM final
ORDER BY list_position(['copied', 'not_copied', 'never_seen'], class), mitigation <> 'none', mitigation
