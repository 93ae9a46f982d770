package halfconv.app

import android.app.Activity
import android.os.Bundle
import android.widget.ScrollView
import android.widget.TextView
import kotlin.concurrent.thread

/** Shows whether both models give the recorded outputs on this device, and how long they take. */
class MainActivity : Activity() {
    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        val view = TextView(this)
        setContentView(ScrollView(this).apply { addView(view) })
        thread {
            for (file in listOf(HalfModel.HALF, HalfModel.TWIN)) {
                val words = runCatching { report(file) }.getOrElse { "$file: ${it.message}" }
                runOnUiThread { view.append("$words\n\n") }
            }
        }
    }

    private fun report(file: String): String =
        HalfModel(this, file).use { model ->
            val begin = System.nanoTime()
            val verdicts = verifyOnDevice(this, model)
            val milliseconds = (System.nanoTime() - begin) / 1e6
            val lines = verdicts.map { "${it.output}: ${if (it.passed) "passed" else "FAILED"} (${it.distance} of ${it.bound})" }
            "$file, all samples in %.1f ms\n".format(milliseconds) + lines.joinToString("\n")
        }
}
