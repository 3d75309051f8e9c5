/*
 * A rank's experts of one layer: the placement and the weights of its slots.
 *
 * A new place is made beside the one in use, by another thread if need be, and
 * put in its stead between two steps.  The pool counts who uses an expert's
 * weights, so what both have is made once, and what neither has goes.
 */

#include <stdlib.h>

#include "model/model_rank.h"


static int place_slot(model_rank_t *mr, be_t *be, uint32_t item,
    be_mlp_t *mlp, char *err);
static void place_put(model_rank_t *mr, be_t *be, uint32_t item,
    const void *w);


int
model_place_open(model_rank_t *mr, be_t *be, uint32_t layer,
    const ep_map_t *map, model_place_t *place, char *err)
{
    uint32_t               i, n, item;
    const uint32_t        *expert;
    const ep_placement_t  *p;

    p = ep_map_placement(map);
    n = p->count[mr->ex->rank];
    expert = p->expert + p->begin[mr->ex->rank];
    item = mr->model->layer[layer].experts;

    place->map = ep_map_copy(map, err);
    if (place->map == NULL) {
        return -1;
    }

    place->expert = calloc((size_t) n + 1, sizeof(be_mlp_t));
    if (place->expert == NULL) {
        ep_map_close(place->map);
        place->map = NULL;
        return model_error(err, "no memory for the %u experts of a rank", n);
    }

    for (i = 0; i < n && item != MODEL_NONE; i++) {
        if (place_slot(mr, be, item + expert[i] * 3, &place->expert[i], err)
            != 0)
        {
            model_place_close(mr, be, layer, place);
            return -1;
        }
    }

    return 0;
}


void
model_place_close(model_rank_t *mr, be_t *be, uint32_t layer,
    model_place_t *place)
{
    uint32_t               i, n, item;
    const be_mlp_t        *mlp;
    const ep_placement_t  *p;

    if (place->map == NULL) {
        return;
    }

    p = ep_map_placement(place->map);
    n = p->count[mr->ex->rank];

    for (i = 0; i < n; i++) {
        mlp = &place->expert[i];
        item = mr->model->layer[layer].experts
               + p->expert[p->begin[mr->ex->rank] + i] * 3;

        place_put(mr, be, item, mlp->w1);
        place_put(mr, be, item + 1, mlp->w3);
        place_put(mr, be, item + 2, mlp->w2);
    }

    ep_map_close(place->map);
    free(place->expert);

    place->map = NULL;
    place->expert = NULL;
}


void
model_place_swap(model_rank_t *mr, uint32_t layer, model_place_t *place)
{
    model_place_t  old;

    old = mr->layer[layer].place;
    mr->layer[layer].place = *place;
    *place = old;

    if (mr->be->forget != NULL) {
        mr->be->forget(mr->be);
    }
}


static int
place_slot(model_rank_t *mr, be_t *be, uint32_t item, be_mlp_t *mlp, char *err)
{
    mlp->w1 = model_pool_get(mr->pool, be, item, err);
    mlp->w3 = (mlp->w1 != NULL) ? model_pool_get(mr->pool, be, item + 1, err)
                                : NULL;
    mlp->w2 = (mlp->w3 != NULL) ? model_pool_get(mr->pool, be, item + 2, err)
                                : NULL;

    return mlp->w2 != NULL ? 0 : -1;
}


static void
place_put(model_rank_t *mr, be_t *be, uint32_t item, const void *w)
{
    if (w != NULL) {
        model_pool_put(mr->pool, be, item);
    }
}
