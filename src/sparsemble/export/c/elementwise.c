//@ pool
typedef struct {
    int32_t channels, height, width, out_height, out_width;
    int32_t kernel_height, kernel_width, stride_down, stride_right, padding_top, padding_left;
} window;

/* The part of a window that is inside. */
typedef struct {
    int32_t top, left, bottom, end;
} part;

static part find_part(const window *w, int32_t i, int32_t j)
{
    const int32_t top = i * w->stride_down - w->padding_top, left = j * w->stride_right - w->padding_left;
    part p;
    p.top = top < 0 ? 0 : top;
    p.left = left < 0 ? 0 : left;
    p.bottom = top + w->kernel_height < w->height ? top + w->kernel_height : w->height;
    p.end = left + w->kernel_width < w->width ? left + w->kernel_width : w->width;
    return p;
}

//@ max_pool
static void max_pool(const window *w, tensor x, tensor y)
{
    int32_t c, i, j, row, column, out = 0;
    for (c = 0; c < w->channels; c++)
        for (i = 0; i < w->out_height; i++)
            for (j = 0; j < w->out_width; j++) {
                const part p = find_part(w, i, j);
                float largest = -INFINITY;
                for (row = p.top; row < p.bottom; row++)
                    for (column = p.left; column < p.end; column++)
                        largest = fmaxf(largest, load(x, (c * w->height + row) * w->width + column));
                store(y, out++, largest);
            }
}

//@ average_pool
static void average_pool(const window *w, tensor x, tensor y)
{
    int32_t c, i, j, row, column, out = 0;
    for (c = 0; c < w->channels; c++)
        for (i = 0; i < w->out_height; i++)
            for (j = 0; j < w->out_width; j++) {
                const part p = find_part(w, i, j);
                float sum = 0;
                for (row = p.top; row < p.bottom; row++)
                    for (column = p.left; column < p.end; column++)
                        sum += load(x, (c * w->height + row) * w->width + column);
                store(y, out++, sum / (float)(w->kernel_height * w->kernel_width));
            }
}

//@ affine
/* y = relu(scale x + shift) for each channel; x may be y. */
static void affine(const float *scale, const float *shift, int relu, int32_t channels, int32_t pixels, tensor x, tensor y)
{
    int32_t c, i;
    for (c = 0; c < channels; c++)
        for (i = c * pixels; i < (c + 1) * pixels; i++) {
            const float result = scale[c] * load(x, i) + shift[c];
            store(y, i, relu && result < 0 ? 0 : result);
        }
}

//@ add
/* y = relu(a + b); a or b may be y. */
static void add(int relu, int32_t count, tensor a, tensor b, tensor y)
{
    int32_t i;
    for (i = 0; i < count; i++) {
        const float result = load(a, i) + load(b, i);
        store(y, i, relu && result < 0 ? 0 : result);
    }
}

//@ image
/* Bytes, row by row, a pixel's channels side by side, become scale * byte / 255 + shift, channel by channel. */
static void image(const uint8_t *pixels, const float *scale, const float *shift, float *y)
{
    int32_t c, i;
    for (c = 0; c < PREDICT_CHANNELS; c++)
        for (i = 0; i < PREDICT_HEIGHT * PREDICT_WIDTH; i++)
            *y++ = scale[c] * ((float)pixels[i * PREDICT_CHANNELS + c] / 255.0f) + shift[c];
}

//@ levels
/* The value scale * byte / 255 + shift of each byte, channel by channel. */
static void levels(const float *scale, const float *shift, float *y)
{
    int32_t c, byte;
    for (c = 0; c < PREDICT_CHANNELS; c++)
        for (byte = 0; byte < 256; byte++)
            *y++ = scale[c] * ((float)byte / 255.0f) + shift[c];
}

