/*
 * Prefix-cache routing in a request's way: the zone's and the route's
 * directives, tags and a hint with what is submitted, and what ACCEPTED says
 * about the rank that took it.
 *
 * Without a zone, or before a worker has brought it up to date with the
 * engine's board, requests go without a hint: the engine balances by itself.
 */

#include "ngx_http_llm_module.h"


#define NGX_HTTP_LLM_MIN_MATCH  0        /* percent */
#define NGX_HTTP_LLM_MAX_SKEW   4        /* requests */


static ngx_int_t ngx_http_llm_prefix_init_zone(ngx_shm_zone_t *shm_zone,
    void *data);
static char *ngx_http_llm_prefix_zone_param(ngx_conf_t *cf,
    ngx_http_llm_prefix_t *zone, ngx_str_t *value);
static char *ngx_http_llm_route_param(ngx_conf_t *cf,
    ngx_http_llm_loc_conf_t *llcf, ngx_str_t *value);
static ngx_int_t ngx_http_llm_route_prompt(ngx_http_llm_ctx_t *ctx,
    ngx_http_llm_prompt_t *prompt, ngx_http_llm_route_t *route,
    ngx_http_llm_prefix_engine_t *pe, uint64_t seed);


char *
ngx_http_llm_prefix_zone(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_llm_main_conf_t *lmcf = conf;

    char                   *rv;
    ssize_t                 size;
    ngx_str_t              *value, name;
    ngx_uint_t              i;
    ngx_shm_zone_t         *shm_zone, **zp;
    ngx_http_llm_prefix_t  *zone;

    value = cf->args->elts;
    size = 0;
    ngx_str_null(&name);

    zone = ngx_pcalloc(cf->pool, sizeof(ngx_http_llm_prefix_t));
    if (zone == NULL) {
        return NGX_CONF_ERROR;
    }

    zone->block = 256;

    for (i = 1; i < cf->args->nelts; i++) {

        if (ngx_strncmp(value[i].data, "zone=", 5) == 0) {
            rv = ngx_http_llm_zone_param(cf, &value[i], &name, &size);

        } else {
            rv = ngx_http_llm_prefix_zone_param(cf, zone, &value[i]);
        }

        if (rv != NGX_CONF_OK) {
            return rv;
        }
    }

    if (name.len == 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"%V\" must have \"zone\" parameter",
                           &cmd->name);
        return NGX_CONF_ERROR;
    }

    shm_zone = ngx_shared_memory_add(cf, &name, size, &ngx_http_llm_module);
    if (shm_zone == NULL) {
        return NGX_CONF_ERROR;
    }

    if (shm_zone->data != NULL) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "duplicate %V \"%V\"", &cmd->name, &name);
        return NGX_CONF_ERROR;
    }

    shm_zone->init = ngx_http_llm_prefix_init_zone;
    shm_zone->data = zone;

    zp = ngx_array_push(&lmcf->prefix_zones);
    if (zp == NULL) {
        return NGX_CONF_ERROR;
    }

    *zp = shm_zone;

    return NGX_CONF_OK;
}


static char *
ngx_http_llm_prefix_zone_param(ngx_conf_t *cf, ngx_http_llm_prefix_t *zone,
    ngx_str_t *value)
{
    ssize_t    size;
    ngx_int_t  time;
    ngx_str_t  s;

    if (ngx_http_llm_arg(value, "block", &s)) {
        size = ngx_parse_size(&s);

        if (size < NGX_HTTP_LLM_BLOCK_MIN || size > NGX_HTTP_LLM_BLOCK_MAX) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid block size \"%V\", it must be between "
                               "%d and %d", value, NGX_HTTP_LLM_BLOCK_MIN,
                               NGX_HTTP_LLM_BLOCK_MAX);
            return NGX_CONF_ERROR;
        }

        zone->block = size;

        return NGX_CONF_OK;
    }

    if (ngx_http_llm_arg(value, "inactive", &s)) {
        time = ngx_parse_time(&s, 1);

        if (time == NGX_ERROR || time > NGX_MAX_INT32_VALUE) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid inactive value \"%V\"", value);
            return NGX_CONF_ERROR;
        }

        zone->inactive = time;

        return NGX_CONF_OK;
    }

    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "invalid parameter \"%V\"",
                       value);

    return NGX_CONF_ERROR;
}


static ngx_int_t
ngx_http_llm_prefix_init_zone(ngx_shm_zone_t *shm_zone, void *data)
{
    ngx_http_llm_prefix_t *ozone = data;

    ngx_http_llm_prefix_t  *zone;

    zone = shm_zone->data;

    if (ozone != NULL) {

        /* Tags of other blocks would never be found again. */

        if (zone->block != ozone->block) {
            ngx_log_error(NGX_LOG_EMERG, shm_zone->shm.log, 0,
                          "llm_prefix_zone \"%V\" uses block=%uz while "
                          "previously it used block=%uz",
                          &shm_zone->shm.name, zone->block, ozone->block);
            return NGX_ERROR;
        }

        zone->sh = ozone->sh;
        zone->shpool = ozone->shpool;

        return NGX_OK;
    }

    zone->shpool = (ngx_slab_pool_t *) shm_zone->shm.addr;

    if (shm_zone->shm.exists) {
        zone->sh = zone->shpool->data;
        return NGX_OK;
    }

    if (ngx_http_llm_prefix_init(zone) != NGX_OK) {
        return NGX_ERROR;
    }

    return ngx_http_llm_zone_name(shm_zone, zone->shpool, "llm_prefix_zone");
}


char *
ngx_http_llm_route(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_llm_loc_conf_t *llcf = conf;

    char        *rv;
    ngx_str_t   *value;
    ngx_uint_t   i;

    if (llcf->route_zone != NGX_CONF_UNSET_PTR) {
        return "is duplicate";
    }

    value = cf->args->elts;
    llcf->route_zone = NULL;

    if (cf->args->nelts == 2 && ngx_strcmp(value[1].data, "off") == 0) {
        return NGX_CONF_OK;
    }

    llcf->route.min_match = NGX_HTTP_LLM_MIN_MATCH;
    llcf->route.max_skew = NGX_HTTP_LLM_MAX_SKEW;

    for (i = 1; i < cf->args->nelts; i++) {
        rv = ngx_http_llm_route_param(cf, llcf, &value[i]);

        if (rv != NGX_CONF_OK) {
            return rv;
        }
    }

    if (llcf->route_zone == NULL) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"%V\" must have \"prefix\" parameter",
                           &cmd->name);
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


static char *
ngx_http_llm_route_param(ngx_conf_t *cf, ngx_http_llm_loc_conf_t *llcf,
    ngx_str_t *value)
{
    size_t     len;
    ngx_int_t  n;
    ngx_str_t  s;

    if (ngx_http_llm_arg(value, "prefix", &s) && s.len > 0) {
        llcf->route_zone = ngx_shared_memory_add(cf, &s, 0,
                                                 &ngx_http_llm_module);

        return llcf->route_zone != NULL ? NGX_CONF_OK : NGX_CONF_ERROR;
    }

    if (ngx_strncmp(value->data, "min_match=", 10) == 0) {

        len = value->len - 10;

        if (len < 2 || value->data[value->len - 1] != '%') {
            goto invalid;
        }

        n = ngx_atoi(value->data + 10, len - 1);

        if (n == NGX_ERROR || n > 100) {
            goto invalid;
        }

        llcf->route.min_match = n;

        return NGX_CONF_OK;
    }

    if (ngx_http_llm_arg(value, "max_skew", &s)) {
        n = ngx_atoi(s.data, s.len);

        if (n == NGX_ERROR || n > NGX_MAX_INT32_VALUE) {
            goto invalid;
        }

        llcf->route.max_skew = n;

        return NGX_CONF_OK;
    }

invalid:

    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "invalid parameter \"%V\"",
                       value);

    return NGX_CONF_ERROR;
}


void
ngx_http_llm_route_merge(ngx_http_llm_loc_conf_t *prev,
    ngx_http_llm_loc_conf_t *conf)
{
    if (conf->route_zone != NGX_CONF_UNSET_PTR) {
        return;
    }

    if (prev->route_zone == NGX_CONF_UNSET_PTR) {
        conf->route_zone = NULL;
        return;
    }

    conf->route_zone = prev->route_zone;
    conf->route = prev->route;
}


void
ngx_http_llm_route_connected(ngx_http_llm_engine_t *engine)
{
    ngx_uint_t                      i;
    ngx_shm_zone_t                **zp;
    ngx_http_llm_prefix_t          *zone;
    ngx_http_llm_main_conf_t       *lmcf;
    ngx_http_llm_prefix_engine_t   *pe;

    lmcf = ngx_http_cycle_get_module_main_conf(ngx_cycle,
                                               ngx_http_llm_module);
    zp = lmcf->prefix_zones.elts;

    for (i = 0; i < lmcf->prefix_zones.nelts; i++) {
        zone = zp[i]->data;
        pe = ngx_http_llm_prefix_engine(zone, &engine->name);

        if (pe != NULL) {
            (void) ngx_http_llm_prefix_sync(zone, pe, engine->board,
                                            engine->model.boot, 1);
        }
    }
}


ngx_int_t
ngx_http_llm_route_submit(ngx_http_request_t *r, ngx_http_llm_ctx_t *ctx)
{
    size_t                         len;
    u_char                         tenant[NGX_HTTP_LLM_TENANT_MAX];
    uint64_t                       seed;
    ngx_uint_t                     i;
    ngx_http_llm_prefix_t         *zone;
    ngx_http_llm_loc_conf_t       *llcf;
    ngx_http_llm_prefix_engine_t  *pe;

    llcf = ngx_http_get_module_loc_conf(r, ngx_http_llm_module);

    if (llcf->route_zone == NULL) {
        return NGX_OK;
    }

    if (ctx->routes == NULL) {
        ctx->routes = ngx_pcalloc(r->pool, ctx->params.nprompts
                                           * sizeof(ngx_http_llm_route_t));
        if (ctx->routes == NULL) {
            return NGX_ERROR;
        }
    }

    zone = llcf->route_zone->data;
    pe = ngx_http_llm_prefix_engine(zone, &ctx->engine->name);

    if (pe != NULL
        && ngx_http_llm_prefix_sync(zone, pe, ctx->engine->board,
                                    ctx->engine->model.boot, 0)
           != NGX_OK)
    {
        pe = NULL;
    }

    /* A model's aliases share its cache. */

    len = ngx_http_llm_params_tenant(&ctx->params, tenant);
    seed = ngx_http_llm_tags_seed(ctx->engine->model.names, tenant, len);

    for (i = 0; i < ctx->params.nprompts; i++) {
        if (ngx_http_llm_route_prompt(ctx, &ctx->params.prompts[i],
                                      &ctx->routes[i], pe, seed)
            != NGX_OK)
        {
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}


/* `pe` is NULL where the zone cannot help; tags are sent all the same. */

static ngx_int_t
ngx_http_llm_route_prompt(ngx_http_llm_ctx_t *ctx,
    ngx_http_llm_prompt_t *prompt, ngx_http_llm_route_t *route,
    ngx_http_llm_prefix_engine_t *pe, uint64_t seed)
{
    uint32_t                  depth[CHAN_RANKS_MAX];
    ngx_http_request_t       *r;
    ngx_http_llm_prefix_t    *zone;
    ngx_http_llm_loc_conf_t  *llcf;

    r = ctx->request;
    llcf = ngx_http_get_module_loc_conf(r, ngx_http_llm_module);
    zone = llcf->route_zone->data;

    route->rank = -1;
    route->ntags = ngx_http_llm_tags_count(&prompt->body, zone->block);

    if (route->ntags == 0) {
        return NGX_OK;
    }

    if (route->tags == NULL) {
        route->tags = ngx_palloc(r->pool, route->ntags * sizeof(chan_tag_t));
        if (route->tags == NULL) {
            return NGX_ERROR;
        }
    }

    ngx_http_llm_tags_make(&prompt->body, seed, zone->block, route->tags,
                           route->ntags);

    if (chan_body_put(&prompt->body, CHAN_SEC_TAGS, NULL, 0, route->tags,
                      route->ntags * sizeof(chan_tag_t))
        != CHAN_OK)
    {
        return NGX_ERROR;
    }

    if (pe != NULL) {
        ngx_http_llm_prefix_find(zone, pe, route->tags, route->ntags, depth);

        route->rank = ngx_http_llm_pick(zone, pe, ctx->engine->board,
                                        &llcf->route, depth, route->ntags,
                                        ctx->params.n, &route->epoch);
    }

    return NGX_OK;
}


void
ngx_http_llm_route_accepted(ngx_http_llm_choice_t *choice)
{
    ngx_http_llm_ctx_t            *ctx;
    ngx_http_llm_route_t          *route;
    ngx_http_llm_engine_t         *engine;
    ngx_http_llm_prefix_t         *zone;
    ngx_http_llm_loc_conf_t       *llcf;
    ngx_http_llm_prefix_engine_t  *pe;

    ctx = choice->ctx;
    engine = ctx->engine;

    if (ctx->routes == NULL) {
        return;
    }

    route = &ctx->routes[choice->index / ctx->params.n];

    if (route->ntags == 0) {
        return;
    }

    ngx_log_debug4(NGX_LOG_DEBUG_HTTP, ctx->request->connection->log, 0,
                   "llm route: hint %i, rank %uD, %uD of %ui tags",
                   route->rank, choice->accepted.rank,
                   choice->accepted.tags_matched, route->ntags);

    llcf = ngx_http_get_module_loc_conf(ctx->request, ngx_http_llm_module);
    zone = llcf->route_zone->data;
    pe = ngx_http_llm_prefix_engine(zone, &engine->name);

    /* What left the cache before this request came in is taken out first. */

    if (pe != NULL
        && ngx_http_llm_prefix_sync(zone, pe, engine->board,
                                    engine->model.boot, 0)
           == NGX_OK)
    {
        ngx_http_llm_prefix_held(zone, pe, route->tags, route->ntags,
                                 choice->accepted.rank,
                                 choice->accepted.rank_epoch);
    }
}
