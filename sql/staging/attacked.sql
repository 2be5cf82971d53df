-- Grain: one model that was asked for pictures.
-- Source: models, untargeted_attacks. pictures: what it was trained on without its canaries, identical ones once, as
-- far as the lake still has them; made: generations that came to something.
WITH final AS (
    SELECT
        models.*,
        attacks.generations - attacks.failed AS made,
        attacks.members - coalesce(models.canaries, 0) AS pictures,
        attacks.controls,
        attacks.generations,
        attacks.frechet,
        attacks.cmmd,
        attacks."precision" AS quality_precision,
        attacks.recall AS quality_recall,
        attacks.quality_generations,
        attacks.quality_pictures
    FROM models
    JOIN untargeted_attacks AS attacks ON attacks.model_id = models.model_id
)

SELECT * FROM final
ORDER BY run_id, step
