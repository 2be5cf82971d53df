-- Grain: one GAN with the diffusion model whose pictures are nearest in quality, among those of the same size that
-- were trained on as many pictures of the same draw, by one measure of quality and one rule.
-- Source: attacked, leaks (staging). alike: the two measures differ by at most a tenth of the larger. difference: the
-- GAN's share less the diffusion model's, with Newcombe's interval.
WITH qualities AS (
    SELECT model_id, family, pixels, images, draw, split, side, copied_images, copies, 'frechet' AS measure,
        frechet AS quality FROM attacked
    UNION ALL
    SELECT model_id, family, pixels, images, draw, split, side, copied_images, copies, 'cmmd', cmmd FROM attacked
),

couples AS (
    SELECT
        gan.model_id AS gan_model_id,
        diffusion.model_id AS diffusion_model_id,
        gan.pixels,
        gan.images,
        gan.measure,
        gan.quality AS gan_quality,
        diffusion.quality AS diffusion_quality
    FROM qualities AS gan
    JOIN qualities AS diffusion
        ON diffusion.measure = gan.measure
        AND diffusion.pixels = gan.pixels
        AND diffusion.images = gan.images
        AND diffusion.draw = gan.draw
        AND diffusion.split = gan.split
        AND diffusion.side = gan.side
        AND diffusion.copied_images = gan.copied_images
        AND diffusion.copies = gan.copies
    WHERE gan.family = 'gan' AND diffusion.family = 'diffusion' AND gan.quality IS NOT NULL
        AND diffusion.quality IS NOT NULL
    QUALIFY row_number() OVER (
        PARTITION BY gan.model_id, gan.measure
        ORDER BY abs(gan.quality - diffusion.quality), diffusion.model_id
    ) = 1
),

final AS (
    SELECT
        couples.gan_model_id,
        couples.diffusion_model_id,
        couples.pixels,
        couples.images,
        couples.measure,
        couples.gan_quality,
        couples.diffusion_quality,
        abs(gan_quality - diffusion_quality) <= 0.1 * greatest(abs(gan_quality), abs(diffusion_quality)) AS alike,
        gan.rule,
        gan.extracted AS gan_extracted,
        gan.extracted_share AS gan_share,
        gan.extracted_share_lower AS gan_share_lower,
        gan.extracted_share_upper AS gan_share_upper,
        diffusion.extracted AS diffusion_extracted,
        diffusion.extracted_share AS diffusion_share,
        diffusion.extracted_share_lower AS diffusion_share_lower,
        diffusion.extracted_share_upper AS diffusion_share_upper,
        rate_difference(gan.extracted, gan.pictures, diffusion.extracted, diffusion.pictures)[1] AS difference,
        rate_difference(gan.extracted, gan.pictures, diffusion.extracted, diffusion.pictures)[2] AS difference_lower,
        rate_difference(gan.extracted, gan.pictures, diffusion.extracted, diffusion.pictures)[3] AS difference_upper
    FROM couples
    JOIN leaks AS gan ON gan.model_id = couples.gan_model_id AND gan.against = 'members'
    JOIN leaks AS diffusion
        ON diffusion.model_id = couples.diffusion_model_id
        AND diffusion.against = 'members'
        AND diffusion.rule = gan.rule
)

SELECT * FROM final
ORDER BY measure, pixels, images, gan_model_id, rule
